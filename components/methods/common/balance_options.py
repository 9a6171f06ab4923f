"""How old and new tensors are weighed, as options. Light on purpose (no torch): options import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Rule = Literal["official_code", "paper", "constant", "frozen"]
Norm = Literal["l1_sum", "l1_mean"]
Start = Literal["task_start", "after_first_step"]


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How the weight of the old average follows from the norms; meanings and sources in `LciaConfig`."""

    rule: Rule
    norm: Norm
    kappa: float
    stability: float
    step_difference: bool
    constant_weight: float
    start: Start

    @property
    def adaptive(self) -> bool:
        """True: the weight depends on gradients."""
        return self.rule in ("official_code", "paper")

    @property
    def needs_previous(self) -> bool:
        """True: the weight depends on the tensors before the step too."""
        return self.rule == "paper" and self.step_difference

    def measure(self, tensor: Tensor) -> Tensor:
        """The L1 norm as a float64 scalar; `l1_mean` divides it by the number of elements."""
        total = tensor.abs().sum().double()  # torch sums in pieces: accurate, and much faster than in float64
        return total / tensor.numel() if self.norm == "l1_mean" else total

    def coefficient(self, *, gradient: Tensor, change: Tensor, distance: Tensor, step: Tensor | None) -> Tensor:
        """The formula's raw value, in (0, 1) or not.

        official_code: kappa (lambda + |g|) / (|theta - theta*| |g - g_before|), the weight of the NEW tensor.
        paper: (lambda + |g|) [|theta - theta_before|] / (|theta - theta*| |g - g_before|), the weight of the OLD one.
        """
        scale = self.kappa if self.rule == "official_code" else 1.0 if step is None else step
        return (self.stability + gradient) * scale / (distance * change)
