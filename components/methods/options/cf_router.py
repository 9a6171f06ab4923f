"""Options of method cf_router. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from components.core.errors import ConfigError
from components.core.options import CountOrZero, Positive
from components.methods.options.base import Export
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.methods.cf_router import CfRouter
    from components.models.families.base import Family

RouterFeatures = Literal["both", "instruction", "picture", "hidden"]


@dataclass(frozen=True, kw_only=True)
class CfRouterConfig(SequentialLoraConfig):
    """A LoRA branch per task; a ridge regression from frozen features to the task, in closed form, picks one."""

    name: ClassVar[str] = "cf_router"
    export: ClassVar[Export] = "hard"
    is_routed: ClassVar[bool] = True
    slots_are_tasks: ClassVar[bool] = True

    features: RouterFeatures = "both"
    """What the router reads; hidden is the paper's, see the class."""
    sentence_encoder: str = "minilm"
    """What embeds instructions, for the features both and instruction."""
    ridge: Positive = 1.0
    """Lambda of the ridge regression; without it the router may have no solution."""
    expansion: CountOrZero = 0  # random ReLU features that stand in for the plain ones; 0: none

    @classmethod
    def tiny(cls) -> Self:
        return cls(sentence_encoder="hash")

    def check_family(self, family: type[Family], *, backbone: str) -> None:
        super().check_family(family, backbone=backbone)
        if self.features == "picture" and not family.takes_pictures():
            raise ConfigError(
                f"cf_router.features is picture, and backbone {backbone!r} takes no pictures; choose both, instruction "
                "or hidden."
            )

    def build(self, *, seed: int) -> CfRouter:
        from components.methods.cf_router import CfRouter

        return CfRouter(self, seed=seed)
