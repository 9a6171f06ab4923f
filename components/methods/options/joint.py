"""Options of method joint. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from components.methods.options.base import DataScope
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.methods.joint import Joint


@dataclass(frozen=True, kw_only=True)
class JointConfig(SequentialLoraConfig):
    """One LoRA adapter, trained once on all tasks' rows shuffled together."""

    name: ClassVar[str] = "joint"
    offers_projector: ClassVar[bool] = True
    data_scope: ClassVar[DataScope] = "union"

    def build(self, *, seed: int) -> Joint:
        from components.methods.joint import Joint

        return Joint(self, seed=seed)
