"""Options of method reg_lora. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from components.core.options import Count, NonNegative, Positive, PositiveShare
from components.methods.options.base import Export
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.methods.reg_lora import RegLora


@dataclass(frozen=True, kw_only=True)
class RegLoraConfig(SequentialLoraConfig):
    """A LoRA branch per task, all summed; a new one leaves the weights alone that earlier ones changed most (SEFE).

    Rank and alpha are those of one branch.
    """

    name: ClassVar[str] = "reg_lora"
    export: ClassVar[Export] = "plain"

    rank: Count = 32
    """Rank of one branch: as much as sequential LoRA trains on a task, as in SEFE (128 in both there)."""
    alpha: Positive = 64.0
    """A branch is scaled by alpha / rank: 2, as in the code."""
    marked_share: PositiveShare = 0.02
    """Share of a layer's weights that every task marks; the released code's 2 %."""
    penalty_weight: NonNegative = 2500.0
    """Lambda, of the marked entries' mean magnitude, as released; what it does at higher rates: see the class."""
    repeated: Literal["sum", "union"] = "sum"
    """Whether a weight that several tasks marked weighs once per task, as in the code, or once."""

    @classmethod
    def tiny(cls) -> Self:
        return cls(rank=8, alpha=16.0, penalty_weight=50.0)  # tests train at fifty times the released rate

    def build(self, *, seed: int) -> RegLora:
        from components.methods.reg_lora import RegLora

        return RegLora(self, seed=seed)
