"""Options of method moelora. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from components.core.errors import ConfigError
from components.core.options import Count, NonNegative, Positive, ShareBelowOne
from components.methods.options.base import MethodConfig

if TYPE_CHECKING:
    from components.methods.moelora import MoeLora


@dataclass(frozen=True, kw_only=True)
class MoeLoraConfig(MethodConfig):
    """A mixture of small LoRA experts in every layer, weighed per token by a router; all train on all tasks.

    The paper's values for LLaVA-7B are in `MoeLora`'s docstring.
    """

    name: ClassVar[str] = "moelora"
    is_task_free: ClassVar[bool] = True  # all experts and routers train all the time, and choose by token
    default_learning_rate: ClassVar[float] = 2e-3  # lowest test loss of 5e-4 to 5e-3 after 60 updates of smol

    rank: Count = 32
    """Rank of all experts together."""
    num_experts: Count = 4
    """Number of experts, of rank / num_experts each."""
    alpha: Positive = 64.0
    """The mixture is scaled by alpha / rank."""
    dropout: ShareBelowOne = 0.0
    """Dropout on each expert's input while it trains; 0.05 in the released code."""
    targets: str = "all_linear"
    """Which layers are adapted: all_linear, o_proj or a pattern below the language model."""
    balance: NonNegative = 0.0
    """Weight of the balance term; 0, as in the paper, leaves it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank % self.num_experts:
            raise ConfigError(
                f"moelora.rank is {self.rank} and num_experts {self.num_experts}; the rank, which the experts share, "
                "must be a multiple of their number."
            )

    def slot_name(self, slot: int, tasks: Sequence[str]) -> str:
        layer, expert = divmod(slot, self.num_experts)
        return f"layer {layer} expert {expert}"

    def build(self, *, seed: int) -> MoeLora:
        from components.methods.moelora import MoeLora

        return MoeLora(self, seed=seed)
