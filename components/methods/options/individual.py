"""Options of method individual. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from components.methods.options.base import Export
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.methods.individual import Individual


@dataclass(frozen=True, kw_only=True)
class IndividualConfig(SequentialLoraConfig):
    """A fresh LoRA adapter for every task; evaluation tells which task a sample belongs to."""

    name: ClassVar[str] = "individual"
    export: ClassVar[Export] = "hard"
    needs_task_id: ClassVar[bool] = True

    def build(self, *, seed: int) -> Individual:
        from components.methods.individual import Individual

        return Individual(self, seed=seed)
