"""Options of method frozen. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from components.methods.options.base import DataScope
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.methods.frozen import Frozen


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(SequentialLoraConfig):
    """One LoRA adapter that learns the first task only."""

    name: ClassVar[str] = "frozen"
    offers_projector: ClassVar[bool] = True
    data_scope: ClassVar[DataScope] = "first"

    def build(self, *, seed: int) -> Frozen:
        from components.methods.frozen import Frozen

        return Frozen(self, seed=seed)
