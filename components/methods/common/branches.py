"""The shared base of methods with one LoRA branch per task; they differ in which branches serve a sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from components.adapters.inject import inject_bank
from components.adapters.joined import Constant
from components.adapters.low_rank import Bank
from components.adapters.mixing import Scale, Scales, scales_from_weights
from components.adapters.serving import Digests, served_by_bank
from components.methods.base import MethodState, Selection, target_pattern
from components.methods.common.growing import GrowingMethod
from components.methods.sequential_lora import LoraConfigT

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone


class TaskBranches(GrowingMethod[LoraConfigT]):
    """Base of methods with a branch per task; task i's branch is the bank's group str(i).

    In training only the current task's branch is active. Otherwise a subclass decides in `weights`.
    """

    bank: Bank

    @property
    def scale(self) -> float:
        """alpha / R, the factor of a branch at full strength."""
        return self.config.alpha / self.config.rank

    def weights(self, model: Backbone, batch: Batch) -> Tensor:
        """Weights [B, T] of the T > 0 learned tasks' branches for every sample; 1 is full strength."""
        raise NotImplementedError

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        self.bank = inject_bank(model, model.target_modules(target_pattern(self.config.targets)))
        super().attach(model, state)

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        if self.current is not None:
            scales: Scales = {str(self.current.index): self.scale}
            selection = Selection(routed_to=[self.current.name] * len(batch)) if self.is_routed else Selection()
        elif not self.tasks:  # zero-shot: there is no branch yet
            scales, selection = {}, Selection()
        else:
            scales, selection = self.serve(model, batch)
        with self.bank.mixing.using(scales):
            yield selection

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        return served_by_bank(self.bank, digests)

    def serve(self, model: Backbone, batch: Batch) -> tuple[Scales, Selection]:
        """Scales of the learned branches for a batch, and the `Selection` that `select` yields."""
        if self.is_routed and batch.oracle_task in self.tasks:
            weights = torch.zeros(len(batch), len(self.tasks))
            weights[:, self.tasks.index(batch.oracle_task)] = 1.0
        else:
            weights = self.weights(model, batch)
        if not self.is_routed:
            return self.scales(weights), Selection()
        ranked = weights.argsort(dim=1, descending=True, stable=True)  # the heaviest first
        used = int((weights != 0).sum(dim=1).max())
        served = [self.tasks[index] for index in ranked[:, 0].tolist()]
        return self.scales(weights), Selection(slots=ranked[:, :used], routed_to=served)

    def scales(self, weights: Tensor) -> Scales:
        """Weights [B, T] as scales of the bank's groups; equal rows become plain numbers."""
        groups = [str(index) for index in range(weights.shape[1])]
        first = weights[0]
        if bool((weights == first).all()):
            return {name: self.scale * value for name, value in zip(groups, first.tolist(), strict=True) if value}
        device = next(iter(self.bank.layers.values())).weight.device
        return scales_from_weights(weights.to(device) * self.scale, groups, rank=self.config.rank)

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.bank.parameters()

    @property
    def num_slots(self) -> int | None:
        return len(self.tasks) if self.is_routed else None

    def grow(self, model: Backbone, index: int) -> None:
        config = self.config
        self.bank.add_group(
            str(index), num_pairs=1, rank=config.rank, init=config.init, seed=self.seed, dropout=config.dropout
        )

    def set_trainable(self, index: int) -> None:
        self.bank.set_trainable(str(index), True)

    def first_branches(self, count: int) -> tuple[dict[str, Scale], Constant | None]:
        """What adds up the first `count` branches, each at full strength: the one that trains, and the frozen ones."""
        current = None if self.current is None else self.current.index
        frozen = [str(index) for index in range(count) if index != current]
        trained: dict[str, Scale] = {} if current is None or current >= count else {str(current): self.scale}
        return trained, Constant.even(frozen, self.scale)

    def factors(self, layer: str, index: int) -> tuple[nn.Parameter, nn.Parameter]:
        """`down` [R, d_in] and `up` [d_out, R] of task `index`'s branch in one layer."""
        group = self.bank.layers[layer].groups[str(index)]
        return group.get_parameter("down"), group.get_parameter("up")
