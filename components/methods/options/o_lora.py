"""Options of method o_lora. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from components.core.options import Count, NonNegative, Positive
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.methods.o_lora import OLora


@dataclass(frozen=True, kw_only=True)
class OLoraConfig(SequentialLoraConfig):
    """A LoRA branch per task, all summed; a new one is kept orthogonal to the frozen earlier ones.

    Rank and alpha are those of one branch.
    """

    name: ClassVar[str] = "o_lora"

    default_learning_rate: ClassVar[float] = 1e-3  # the scripts'; at scale 4 as strong a step as 2e-3 at scale 2

    rank: Count = 32
    """Rank of one branch: as much as sequential LoRA trains on a task, as in the paper (8 in both there)."""
    alpha: Positive = 128.0
    """A branch is scaled by alpha / rank: 4, as in the code (alpha 32 at rank 8)."""
    penalty: Literal["absolute", "squared"] = "absolute"
    """What is summed of the overlap: absolute values, as the released code, or squares, the paper's formula."""
    orthogonality_weight: NonNegative = 0.5
    """Lambda 1, for the penalty absolute; 0.5 in the scripts of the first order, up to 5 in later ones."""
    norm_weight: NonNegative = 0.0
    """Lambda 2, of the new branch's norms; 0 in the released scripts."""

    @classmethod
    def tiny(cls) -> Self:
        return cls(rank=8, alpha=16.0, orthogonality_weight=0.1)  # pocket's 64 directions are soon full

    def build(self, *, seed: int) -> OLora:
        from components.methods.o_lora import OLora

        return OLora(self, seed=seed)
