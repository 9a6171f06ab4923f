"""Options of method sequential_lora. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from components.core.errors import ConfigError
from components.core.options import Count, Positive, ShareBelowOne
from components.methods.options.base import Export, MethodConfig

if TYPE_CHECKING:
    from components.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class SequentialLoraConfig(MethodConfig):
    """One LoRA adapter, trained on task after task."""

    name: ClassVar[str] = "sequential_lora"
    export: ClassVar[Export] = "plain"
    offers_projector: ClassVar[bool] = True  # not inherited: False in a subclass that does not repeat it
    is_task_free: ClassVar[bool] = True  # one adapter throughout; only the trainer's optimizer starts anew

    rank: Count = 32
    """Rank of the adapter; 32 is Continual LLaVA's active rank (4 slots of rank 8)."""
    alpha: Positive = 64.0
    """The increment is scaled by alpha / rank."""
    dropout: ShareBelowOne = 0.0
    """Dropout on the adapter's input while it trains."""
    targets: str = "o_proj"
    """Which layers are adapted: o_proj, all_linear or a pattern below the language model."""
    init: Literal["kaiming", "gaussian", "small"] = "kaiming"
    """How the down factor is drawn: kaiming as peft, gaussian N(0, 1 / rank), or small N(0, 0.01)."""
    train_projector: bool = False
    """Whether a float32 copy of the multimodal projector trains along, as in LLaVA's recipe."""
    projector_rate: Positive = 0.125
    """The projector's learning rate relative to the adapter's; LLaVA and CoIN name a tenth."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.offers_projector = vars(cls).get("offers_projector", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_projector and not self.offers_projector:
            raise ConfigError(
                f"{self.name}.train_projector is on, but {self.name} trains its adapter only; leave it off, or "
                "use sequential_lora, frozen, joint or replay."
            )

    def build(self, *, seed: int) -> Method:
        from components.methods.sequential_lora import SequentialLora

        return SequentialLora(self, seed=seed)
