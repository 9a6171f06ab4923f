"""Learnable scalars that weigh what earlier tasks selected. Shape letters: L tasks, K pairs of the bank."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

ContextRange = Literal["sigmoid", "clamp"]

# sigmoid reaches 1 only at infinity: its start is kept where a gradient is left
SIGMOID_START = (0.05, 0.95)


class ContextScalars(nn.Module):
    """For each task t >= 1 (0-based) a vector of t scalars in [0, 1], one per earlier task. Always float32.

    The values are read only through `forward`, so that ZeRO-3 gathers them when they are needed.
    """

    def __init__(self, range_: ContextRange) -> None:
        super().__init__()
        self.range = range_
        self.raw = nn.ParameterDict()

    def add_task(self, index: int, *, start: float, device: torch.device) -> None:
        """Append the scalars of task `index` >= 1, all at `start` (their value after the range is enforced)."""
        assert index >= 1, "the first task has no earlier one"
        assert str(index) not in self.raw, f"task {index} has scalars already"
        if self.range == "sigmoid":
            low, high = SIGMOID_START
            start = float(torch.logit(torch.tensor(min(max(start, low), high), dtype=torch.float64)))
        self.raw[str(index)] = nn.Parameter(torch.full((index,), start, device=device, dtype=torch.float32))

    def values(self, raw: Tensor) -> Tensor:
        """Scalars in [0, 1] from free ones."""
        if self.range == "sigmoid":
            return raw.sigmoid()
        # a plain clamp would cut the gradient for good outside [0, 1]; this passes it straight through
        return raw + (raw.clamp(0.0, 1.0) - raw).detach()

    def forward(self, shares: Tensor) -> Tensor:
        """shares [L, K], the mean weights each earlier task gave its pairs -> context weights [L + 1, K].

        Row t is sum over l < t of scalar(t, l) * shares[l]; row 0 and rows without scalars are zero.
        """
        num_tasks = shares.shape[0] + 1
        rows = [shares.new_zeros(shares.shape[1])] * num_tasks
        for key, raw in self.raw.items():
            index = int(key)
            if index >= num_tasks:  # of a task whose training was interrupted: not learned, not counted
                continue
            rows[index] = self.values(raw) @ shares[:index]
        return torch.stack(rows)
