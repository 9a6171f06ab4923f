"""Learnable scalars that weigh what earlier tasks selected. Shape letters: L tasks, K pairs of the bank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.adapters.options import ContextRange

# sigmoid reaches 1 only at infinity: its start is kept where a gradient is left
SIGMOID_START = (0.05, 0.95)


class ContextScalars(nn.Module):
    """For each task t >= 1 (0-based) a vector of t scalars in [0, 1], one per earlier task. Always float32.

    ZeRO-3 gathers what a module owns itself, around its `forward`: the scalars are plain parameters of this module (a
    ParameterDict would own them instead) and are read nowhere else.
    """

    def __init__(self, range_: ContextRange) -> None:
        super().__init__()
        self.range = range_

    def add_task(self, index: int, *, start: float, device: torch.device) -> None:
        """Append the scalars of task `index` >= 1, frozen, all at `start` (their value after the range is enforced)."""
        assert index >= 1, "the first task has no earlier one"
        assert f"task_{index}" not in self._parameters, f"task {index} has scalars already"
        start = self.reachable(start)
        if self.range == "sigmoid":
            start = float(torch.logit(torch.tensor(start, dtype=torch.float64)))
        scalars = nn.Parameter(torch.full((index,), start, device=device, dtype=torch.float32), requires_grad=False)
        self.register_parameter(f"task_{index}", scalars)

    def reachable(self, start: float) -> float:
        """The nearest value that scalars can start at."""
        low, high = SIGMOID_START if self.range == "sigmoid" else (0.0, 1.0)
        return min(max(start, low), high)

    def set_trainable(self, index: int) -> None:
        """Let only the scalars of task `index` train (none if it has none)."""
        for name, scalars in self.named_parameters():
            scalars.requires_grad_(name == f"task_{index}")

    def scalars(self, index: int) -> Tensor | None:
        """The scalars [index] of task `index`, each in [0, 1]; None if it has none."""
        raw = self._parameters.get(f"task_{index}")
        return None if raw is None else self.values(raw.detach())

    def values(self, raw: Tensor) -> Tensor:
        """Scalars in [0, 1] from free ones."""
        if self.range == "sigmoid":
            return raw.sigmoid()
        # a plain clamp would have no gradient outside [0, 1]; this passes it straight through
        return raw + (raw.clamp(0.0, 1.0) - raw).detach()

    def forward(self, shares: Tensor) -> Tensor:
        """shares [L, K], the mean weights each earlier task gave its pairs -> context weights [L + 1, K].

        Row t is sum over l < t of scalar(t, l) * shares[l]; row 0 is zero.
        """
        num_tasks = shares.shape[0] + 1
        rows = [shares.new_zeros(shares.shape[1])] * num_tasks
        for index in range(1, num_tasks):
            rows[index] = self.values(self.get_parameter(f"task_{index}")) @ shares[:index]
        return torch.stack(rows)
