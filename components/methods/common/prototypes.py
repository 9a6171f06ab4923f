"""Mean features of every task's training samples, and branches that are weighed by a sample's nearness to them.

Shape letters: B batch, T learned tasks, D dimensions of a feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from components.core.errors import CheckpointError, ConfigError
from components.methods.base import Engine, Forgotten, MethodState, TaskInfo
from components.methods.common.branches import TaskBranches
from components.methods.common.features import ReadsInstructions
from components.methods.common.key_selection import evenly_spaced
from components.methods.common.unlearning import branch_forgotten, place_of, without_rows
from components.methods.options.prototypes import PrototypeConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone

PREPARED_TEXTS = 50_000  # embedded before the first task; half of what the encoder remembers
TEXT = "text"


PrototypeConfigT = TypeVar("PrototypeConfigT", bound=PrototypeConfig)


class PrototypeBranches(ReadsInstructions[PrototypeConfigT], TaskBranches[PrototypeConfigT]):
    """A branch per task and, in `memory`, a prototype per task and kind of feature: the mean over its samples [T, D].

    Prototypes are gathered after a task's last step from its training batches, as sums and counts over all workers.
    Features and cosines are compared on the CPU, so the weights do not depend on where the model runs.
    """

    def widths(self, model: Backbone) -> dict[str, int]:
        """D of every kind of feature."""
        return {TEXT: self.encoder.dim}

    def features(self, model: Backbone, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """By kind: features [B, D] float32 on the CPU, and which samples have them [B] bool."""
        return {TEXT: (self.encoder.encode(batch.instructions), torch.ones(len(batch), dtype=torch.bool))}

    def cosines(self, kind: str, features: Tensor) -> Tensor:
        """Features [B, D] -> cosines with the prototypes [B, T]; 0 with one of a task that had no such feature."""
        return F.normalize(features, dim=1) @ F.normalize(self.memory[kind], dim=1).T

    def prepare(self, instructions: Sequence[str]) -> None:
        self.encoder.encode(evenly_spaced(instructions, PREPARED_TEXTS))  # many at a time is quicker

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        super().attach(model, state)
        expected = {kind: (len(self.tasks), width) for kind, width in self.widths(model).items()} if self.tasks else {}
        found = {kind: tuple(prototypes.shape) for kind, prototypes in self.memory.items()}
        if found != expected:
            raise CheckpointError(
                f"the checkpoint's state has prototypes {found}, its {len(self.tasks)} tasks need {expected}; use the "
                "encoder and backbone it was made with, or start a new run."
            )

    served_by = TaskBranches.served_by  # the branches in force are all that serves

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        assert engine is not None, "a branch is trained for every task"
        for kind, mean in self._means(engine, task, batches).items():
            self.memory[kind] = torch.cat([self.memory.get(kind, mean[:0]), mean])

    def forget_task(self, state: MethodState, task: str) -> Forgotten:
        place, _ = place_of(state, task)
        left = branch_forgotten(state, task)
        rows = {name: without_rows(left.tensors[name], place) for name in left.tensors if name.startswith(self.MEMORY)}
        return Forgotten(state=MethodState(tensors={**left.tensors, **rows}, structure=left.structure))

    def _means(self, engine: Engine, task: TaskInfo, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Mean features of the task just learned [1, D], over the samples of all workers that have them."""
        model = engine.model
        widths = self.widths(model)
        sums = {kind: torch.zeros(width, dtype=torch.float64) for kind, width in widths.items()}
        counts = {kind: torch.zeros((), dtype=torch.float64) for kind in widths}
        for batch in batches:
            for kind, (values, present) in self.features(model, batch).items():
                values = values[present]
                values = F.normalize(values, dim=1) if self.config.prototype == "unit" else values
                sums[kind] += values.double().sum(dim=0)
                counts[kind] += len(values)
        # sums and counts are averaged apart: a worker with fewer samples must not weigh more per sample
        packed = {kind: torch.cat([sums[kind], counts[kind].view(1)]).to(model.device) for kind in widths}
        means = {kind: value.cpu() for kind, value in engine.mean_over_workers(packed).items()}
        if not means[TEXT][-1]:
            raise ConfigError(
                f"{self.config.name} got no training batch of task {task.name!r} to take prototypes from."
            )
        # a task without pictures has the sum 0, and keeps it
        return {kind: (value[:-1] / value[-1].clamp_min(1e-12)).float().unsqueeze(0) for kind, value in means.items()}
