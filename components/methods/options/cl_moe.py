"""Options of method cl_moe. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from components.core.errors import ConfigError
from components.core.options import Count, Positive, Share, ShareBelowOne
from components.methods.options.base import MethodConfig

if TYPE_CHECKING:
    from components.methods.cl_moe import ClMoe

Specific = Literal["old", "new"]


@dataclass(frozen=True, kw_only=True)
class ClMoeConfig(MethodConfig):
    """LoRA experts routed by token and by task, averaged with their former selves after every task.

    Sources of the values are in `ClMoe`'s docstring.
    """

    name: ClassVar[str] = "cl_moe"
    slots_are_tasks: ClassVar[bool] = True

    rank: Count = 32
    """Rank of all experts together."""
    num_experts: Count = 4
    """Number of experts, of rank / num_experts each."""
    alpha: Positive = 64.0
    """The mixture is scaled by alpha / rank."""
    dropout: ShareBelowOne = 0.0
    """Dropout on each expert's input while it trains."""
    targets: str = "all_linear"
    """Which layers are adapted: all_linear, o_proj or a pattern below the language model."""

    momentum: Share = 0.7
    """Share of the former values in most experts; task-specific ones keep 1 - momentum of them."""
    specific: Specific = "old"
    """Whose experts alone are task-specific: the former task's, as the code, or the new one's."""
    top_experts: Count = 2
    """Most used experts that a task is said to use, and that serve it at task level; 8 as released."""
    statistics: Literal["model", "layer"] = "model"
    """Whether uses are counted over all layers together, as the code, or in each."""

    beta: Share = 0.5
    """Share of the token's gates at test; 1 leaves the task level out, as the released code does."""
    sentence_encoder: str = "minilm"
    """What embeds instructions for the task index, which is our own."""

    @classmethod
    def tiny(cls) -> Self:
        return cls(sentence_encoder="hash")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_experts < 2 or self.rank % self.num_experts:
            raise ConfigError(
                f"cl_moe.rank is {self.rank} and num_experts {self.num_experts}; give at least 2 experts and a rank, "
                "which they share, that is a multiple of their number."
            )
        if self.top_experts > self.num_experts:
            raise ConfigError(f"cl_moe.top_experts is {self.top_experts}; give 1 to num_experts = {self.num_experts}.")

    def build(self, *, seed: int) -> ClMoe:
        from components.methods.cl_moe import ClMoe

        return ClMoe(self, seed=seed)
