"""One optimizer update: micro-batches forward and backward, the step, and what makes it the same on any split."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from components.adapters.compute import shared_weights
from components.core.errors import TrainingError
from components.data.batch import Batch
from components.methods.base import Method, MethodState
from components.models.backbone import Backbone
from components.training.engine import Engine

COUNT = "answer tokens"


def take_step(
    engine: Engine,
    model: Backbone,
    method: Method,
    batches: Sequence[Batch],
    device: torch.device,
    also: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Forward and backward over the micro-batches, then the step.

    A micro-batch weighs by its answer tokens in relation to the mean of all micro-batches of all workers. So the
    update is that of the one large batch, however it is split. No value is read on the host, which would wait for it.
    A loss that is not finite makes the whole gradient so, and then the engine's step changes nothing, on any worker.

    Returns the loss and its parts, still to be averaged over workers, and the means over workers of the numbers `also`.
    """
    counts = [len(batch.predicting) for batch in batches]
    means = engine.mean_over_workers({COUNT: torch.full((), float(sum(counts)), device=device), **(also or {})})
    mean_count = means.pop(COUNT).double() / len(batches)
    totals: dict[str, Tensor] = {}
    stepped = False
    # No weight changes until the last micro-batch's step.
    with shared_weights():
        for batch, count in zip(batches, counts, strict=True):
            batch = batch.to(device)
            weight = (count / mean_count).float()
            # The engine enters the method's scope inside its forward pass, where ZeRO-3 has gathered the parameters
            # that `select` reads. The scope stays open until the backward pass is done.
            with ExitStack() as scope:
                enter = functools.partial(scope.enter_context, method.select(model, batch))
                outputs, selection = engine.forward(batch, enter)
                loss = method.loss(model, batch, outputs, selection)
                # 1 exactly, or not a number: a penalty can be infinite while its gradient is not
                finite = 1.0 + 0.0 * loss.total.detach()
                engine.backward(loss.total * (weight * finite))
            for name, value in {"loss": loss.total, **loss.parts}.items():
                totals[name] = totals.get(name, torch.zeros((), device=device)) + value.detach() * weight
            stepped = method.step(engine)  # after every micro-batch: the engine counts them
    if not stepped:
        raise TrainingError(
            "an update ended without a step of the optimizer; install a DeepSpeed that pyproject.toml allows."
        )
    return {name: value / len(batches) for name, value in totals.items()}, means


def require_finite_state(state: MethodState, task: str) -> None:
    """Raise `TrainingError` where what a method carries after `task` holds a number that is not finite."""
    for name, tensor in state.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"task {task} left numbers in the method that are not finite, first in {name}; look at the task's "
                "rows, or lower training.optimizer.learning_rate."
            )


def step_seed(seed: int, task: int, update: int, rank: int) -> int:
    """Dropout's seed: a function of the step, so a checkpoint need not hold the state of a random generator."""
    return (((seed * 1_009 + task) * 1_000_003 + update) * 1_021 + rank) % (2**63)
