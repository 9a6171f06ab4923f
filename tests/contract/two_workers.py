"""The toy tasks learned by two processes together, each with half of every batch: plain torch and gloo, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from torch import Tensor
from toy_tasks import Toy, attached, fresh_backbone, logits, share_of_toy_tasks, tiny_config, told

from components.data.batch import IGNORE
from components.methods import method_config
from components.methods.base import Method
from components.models.backbone import Backbone
from components.training.engine import TorchEngine, mean_over_workers
from components.training.optimizer import OptimizerConfig
from tests.integration.worker_processes import results_of

UPDATES, RATE = 3, 1e-2


def answers_of(names: Sequence[str], *, world_size: int) -> dict[str, list[Tensor]]:
    """By method: the logits on both tasks after both were learned."""
    if world_size == 1:
        return {name: _answers(name, 0) for name in names}
    found = results_of(_sent, names, world_size=world_size)
    return {name: [torch.from_numpy(each) for each in first] for name, (first, *_) in found.items()}


def _sent(name: str, rank: int) -> list[np.ndarray]:
    return [each.numpy() for each in _answers(name, rank, world_size=2)]


def _answers(name: str, rank: int, *, world_size: int = 1) -> list[Tensor]:
    model = fresh_backbone()
    method = attached(tiny_config(name), model)
    config = method_config(name)
    tell = told if config.needs_task_id else (lambda toy: toy)
    for share in share_of_toy_tasks(rank, world_size, pictured=not config.learns_from_text):
        _learn(method, model, tell(share))
    whole = share_of_toy_tasks(0, 1, pictured=not config.learns_from_text)
    return [logits(method, model, tell(toy).batch).contiguous() for toy in whole]


def _learn(method: Method, model: Backbone, share: Toy) -> None:
    """As the worker loop does: a share of an update weighs by its answer tokens."""
    method.begin_task(model, share.info)
    method.calibrate(model, share.info, iter([share.batch]), mean_over_workers)
    engine = TorchEngine(model, OptimizerConfig(learning_rate=RATE))
    count = float((share.batch.labels[:, 1:] != IGNORE).sum())
    weight = count / float(mean_over_workers({"n": torch.tensor(count)})["n"])
    model.train()
    for _ in range(UPDATES):
        with ExitStack() as scope:
            enter = partial(scope.enter_context, method.select(model, share.batch))
            outputs, selection = engine.forward(share.batch, enter)
            loss = method.loss(model, share.batch, outputs, selection)
            engine.backward(loss.total * weight)
        assert method.step(engine)
    method.end_task(engine, share.info, iter([share.batch]))
    engine.close()
    model.eval()
