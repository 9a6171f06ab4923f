"""One optimizer update: micro-batches forward and backward, the step, and what makes it the same on any split."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from components.core.errors import TrainingError
from components.data.batch import IGNORE, Batch
from components.methods.base import Method
from components.models.backbone import Backbone
from components.training.engine import Engine


def take_step(
    engine: Engine, model: Backbone, method: Method, batches: Sequence[Batch], device: torch.device
) -> dict[str, Tensor]:
    """Forward and backward over the micro-batches, then the step; the loss and its parts as means over workers.

    A micro-batch weighs by its answer tokens in relation to the mean of all micro-batches of all workers. So the
    update is that of the one large batch, however it is split.
    """
    counts = [int((batch.labels[:, 1:] != IGNORE).sum()) for batch in batches]
    mean_count = float(engine.mean_over_workers({"n": torch.tensor(float(sum(counts)), device=device)})["n"])
    mean_count /= len(batches)
    totals: dict[str, Tensor] = {}
    stepped = False
    for batch, count in zip(batches, counts, strict=True):
        batch = batch.to(device)
        # The engine enters the method's scope inside its forward pass, where ZeRO-3 has gathered the parameters
        # that `select` reads. The scope stays open until the backward pass is done.
        with ExitStack() as scope:
            enter = functools.partial(scope.enter_context, method.select(model, batch))
            outputs, selection = engine.forward(batch, enter)
            loss = method.loss(model, batch, outputs, selection)
            weight = count / mean_count
            engine.backward(loss.total * weight)
        for name, value in {"loss": loss.total, **loss.parts}.items():
            totals[name] = totals.get(name, torch.zeros((), device=device)) + value.detach() * weight
        stepped = method.step(engine)  # after every micro-batch: the engine counts them
    if not stepped:
        raise TrainingError(
            "an update ended without a step of the optimizer; install a DeepSpeed that pyproject.toml allows."
        )
    return engine.mean_over_workers({name: value / len(batches) for name, value in totals.items()})


def require_finite(loss: float, task: str, update: int) -> None:
    """Raise `TrainingError` for a loss that is infinite or not a number; as a mean over workers it is so on all."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss of task {task} became {loss} at update {update}; lower training.optimizer.learning_rate or "
            "check the data."
        )


def step_seed(seed: int, task: int, update: int, rank: int) -> int:
    """Dropout's seed: a function of the step, so a checkpoint need not hold the state of a random generator."""
    return (((seed * 1_009 + task) * 1_000_003 + update) * 1_021 + rank) % (2**63)
