"""The toy tasks learned by two processes together, each with half of every batch: plain torch and gloo, no Ray."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy_tasks import Toy, attached, fresh_backbone, logits, share_of_toy_tasks, tiny_config, told

from components.data.batch import IGNORE
from components.methods import method_config
from components.methods.base import Method
from components.models.backbone import Backbone
from components.training.engine import TorchEngine, mean_over_workers
from components.training.optimizer import OptimizerConfig

UPDATES, RATE = 3, 1e-2


def answers_of(names: Sequence[str], *, world_size: int, folder: Path) -> dict[str, Tensor]:
    """Logits on both tasks after both were learned, by "method/task"."""
    if world_size == 1:
        return _answers(names, rank=0, world_size=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = folder / "answers.safetensors"
    mp.spawn(_work, args=(list(names), world_size, port, file), nprocs=world_size)  # type: ignore[attr-defined]
    return load_file(file)


def _work(rank: int, names: list[str], world_size: int, port: int, file: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    answers = _answers(names, rank=rank, world_size=world_size)
    if rank == 0:
        save_file(answers, file)
    dist.destroy_process_group()


def _answers(names: Sequence[str], *, rank: int, world_size: int) -> dict[str, Tensor]:
    answers: dict[str, Tensor] = {}
    for name in names:
        model = fresh_backbone()
        method = attached(tiny_config(name), model)
        config = method_config(name)
        tell = told if config.needs_task_id else (lambda toy: toy)
        for share in share_of_toy_tasks(rank, world_size, pictured=not config.learns_from_text):
            _learn(method, model, tell(share))
        for toy in share_of_toy_tasks(0, 1, pictured=not config.learns_from_text):
            answers[f"{name}/{toy.info.name}"] = logits(method, model, tell(toy).batch).contiguous()
    return answers


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
