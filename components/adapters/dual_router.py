"""Expert layers whose per-token gates can be mixed with gates of a whole task (CL-MoE).

One layer computes, for each token x of a sample, with gates g(x) = softmax(router x) and task gates G,

    y = W0 x + scale * sum_e (beta g_e(x) + (1 - beta) G_e) up_e down_e x

Shape letters: B batch, T tokens, N experts, R rank of one expert, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.experts import ExpertLinear, Experts, GateRecord
from components.adapters.inject import replace_linear
from components.adapters.low_rank import seeded_generator
from components.adapters.present import present


class TaskGates:
    """The gates of the tasks that a batch's samples seem to belong to, for all layers; None: only tokens' gates."""

    def __init__(self, beta: float) -> None:
        """`beta` is the tokens' share while task gates are in force."""
        self.beta = beta
        self.rows: Tensor | None = None  # [L, B, N], each row sums to 1

    @contextmanager
    def using(self, rows: Tensor | None) -> Iterator[None]:
        """Put `rows` in force; the previous ones are restored on exit, even after an exception."""
        before, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows = before


class DualRouterLinear(ExpertLinear):
    """An `ExpertLinear` that also obeys `TaskGates`; `position` is its place among the L layers."""

    def __init__(
        self,
        linear: nn.Linear,
        *,
        num_experts: int,
        rank: int,
        scale: float,
        dropout: float,
        record: GateRecord,
        task_gates: TaskGates,
        position: int,
    ) -> None:
        """`rank` is that of all experts together."""
        super().__init__(linear, num_experts=num_experts, rank=rank, scale=scale, dropout=dropout, record=record)
        self.task_gates = task_gates
        self.position = position

    def forward(self, input: Tensor) -> Tensor:  # the base class names its argument so
        """input [B, T, d_in] -> [B, T, d_out] in the base layer's dtype."""
        output = F.linear(input, self.weight, self.bias)
        x = self.adapter_input(input)
        gates = self._gates(x)
        rows, beta = self.task_gates.rows, self.task_gates.beta
        if rows is not None:
            gates = beta * gates + (1.0 - beta) * present(rows[self.position]).unsqueeze(1)
        return self._with_increment(output, x, gates)


class DualRouterExperts(Experts):
    """All such layers of a model and the task gates they share."""

    def __init__(self, layers: Mapping[str, ExpertLinear], record: GateRecord, task_gates: TaskGates) -> None:
        super().__init__(layers, record)
        self.task_gates = task_gates

    @torch.no_grad()
    def average(self, before: Mapping[str, Tensor], shares: Tensor) -> None:
        """Experts become shares * before + (1 - shares) * what they are; routers stay. shares [L, N], by layer.

        `before` holds former values under the names of `parameters`. Only where parameters are whole.
        """
        for (name, layer), row in zip(self.layers.items(), shares, strict=True):
            row = row.to(layer.down).repeat_interleave(len(layer.down) // layer.num_experts)
            layer.down.lerp_(before[f"{name}.down"].to(layer.down), row.unsqueeze(1))
            layer.up.lerp_(before[f"{name}.up"].to(layer.up), row.unsqueeze(0))


def inject_dual_router(
    model: nn.Module,
    targets: Mapping[str, nn.Linear],
    *,
    num_experts: int,
    rank: int,
    scale: float,
    dropout: float,
    beta: float,
    seed: int,
) -> DualRouterExperts:
    """As `inject_experts`, with the same draw, but with `DualRouterLinear` layers."""
    record, task_gates, names = GateRecord(), TaskGates(beta), list(targets)

    def adapted(name: str, linear: nn.Linear) -> DualRouterLinear:
        layer = DualRouterLinear(
            linear,
            num_experts=num_experts,
            rank=rank,
            scale=scale,
            dropout=dropout,
            record=record,
            task_gates=task_gates,
            position=names.index(name),
        )
        layer.draw(seeded_generator(seed, "experts", name))
        return layer

    return DualRouterExperts(replace_linear(model, targets, adapted), record, task_gates)
