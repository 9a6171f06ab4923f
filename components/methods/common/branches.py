"""One LoRA branch per task, frozen once it is learned: what methods share that differ in who serves a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from components.adapters.inject import inject_bank
from components.adapters.low_rank import Bank, Scale, scales_from_weights
from components.core.errors import CheckpointError
from components.methods.base import (
    Engine,
    Json,
    Method,
    MethodState,
    Selection,
    TaskInfo,
    copy_tensors,
    load_parameters,
    target_pattern,
)
from components.methods.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone

MEMORY = "memory."  # prefix of `memory` in a state


class TaskBranches(Method):
    """Base of methods with a branch per task; task i's branch is the bank's group str(i).

    While a task is trained, its branch alone serves. A subclass says in `weights` which branches serve otherwise.
    `memory` holds tensors that go with the branches (prototypes, Gram matrices, ...); it is part of the state.
    """

    def __init__(self, config: SequentialLoraConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.options = config
        self.begun: list[str] = []  # tasks that have a branch, in stream order, learned or not
        self.current: TaskInfo | None = None  # between begin_task and end_task
        self.memory: dict[str, Tensor] = {}
        self.bank: Bank

    @property
    def scale(self) -> float:
        """alpha / R, the factor of a branch that serves alone."""
        return self.options.alpha / self.options.rank

    def weights(self, model: Backbone, batch: Batch) -> Tensor:
        """Weights [B, T] of the T learned tasks' branches for every sample, 1 for full strength (0 < T)."""
        raise NotImplementedError

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        self.bank = inject_bank(model, model.target_modules(target_pattern(self.options.targets)))
        if state is None:
            return
        self.restore(state)
        begun = state.structure.get("begun")
        if not isinstance(begun, list):
            raise CheckpointError("the checkpoint's state does not say which tasks were begun; start a new run.")
        for name in begun:
            self.grow(str(name))
        values = dict(state.tensors)
        for key in [key for key in values if key.startswith(MEMORY)]:
            self.memory[key.removeprefix(MEMORY)] = values.pop(key).clone()
        load_parameters(self.parameters(), values)
        self.freeze()

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        if task.name not in self.begun:  # otherwise an interrupted task goes on with what `attach` restored
            self.grow(task.name)
        self.freeze()
        self.bank.set_trainable(str(task.index), True)
        self.current = task

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        if self.current is not None:
            scales: Mapping[str, Scale] = {str(self.current.index): self.scale}
            selection = Selection(routed_to=[self.current.name] * len(batch)) if self.is_routed else Selection()
        elif not self.tasks:  # zero-shot: there is no branch yet
            scales, selection = {}, Selection()
        else:
            scales, selection = self.serve(model, batch)
        with self.bank.mixing.using(scales):
            yield selection

    def serve(self, model: Backbone, batch: Batch) -> tuple[Mapping[str, Scale], Selection]:
        """Scales of the learned branches for a batch, and what `select` tells of it."""
        if self.is_routed and batch.oracle_task in self.tasks:
            weights = torch.zeros(len(batch), len(self.tasks))
            weights[:, self.tasks.index(batch.oracle_task)] = 1.0
        else:
            weights = self.weights(model, batch)
        if not self.is_routed:
            return self.scales(weights), Selection()
        ranked = weights.argsort(dim=1, descending=True, stable=True)  # the main one first
        used = int((weights != 0).sum(dim=1).max())
        served = [self.tasks[index] for index in ranked[:, 0].tolist()]
        return self.scales(weights), Selection(slots=ranked[:, :used], routed_to=served)

    def scales(self, weights: Tensor) -> Mapping[str, Scale]:
        """Weights [B, T] as scales of the bank's groups; equal rows become plain numbers."""
        groups = [str(index) for index in range(weights.shape[1])]
        first = weights[0]
        if bool((weights == first).all()):
            return {name: self.scale * value for name, value in zip(groups, first.tolist(), strict=True) if value}
        device = next(iter(self.bank.layers.values())).weight.device
        return scales_from_weights(weights.to(device) * self.scale, groups, rank=self.options.rank)

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        self.freeze()
        self.current = None

    def state_dict(self, model: Backbone) -> MethodState:
        memory = {f"{MEMORY}{name}": tensor for name, tensor in self.memory.items()}
        return MethodState(tensors=copy_tensors({**self.parameters(), **memory}), structure=self.structure())

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.bank.parameters()

    def structure(self) -> dict[str, Json]:
        return {**super().structure(), "begun": list(self.begun)}

    @property
    def num_slots(self) -> int | None:
        return len(self.tasks) if self.is_routed else None

    def freeze(self) -> None:
        """Nothing the method added trains."""
        for parameter in self.parameters().values():
            parameter.requires_grad_(False)

    def grow(self, task: str) -> None:
        """Append the branch of the next task; its draw depends on the seed and the position only."""
        options = self.options
        self.bank.add_group(
            str(len(self.begun)),
            num_pairs=1,
            rank=options.rank,
            init=options.init,
            seed=self.seed,
            dropout=options.dropout,
        )
        self.begun.append(task)
