"""Options of method lwf. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from components.core.options import NonNegative, Positive
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.methods.lwf import Lwf


@dataclass(frozen=True, kw_only=True)
class LwfConfig(SequentialLoraConfig):
    """Sequential LoRA that also keeps answering as the adapter did before the task (distillation)."""

    name: ClassVar[str] = "lwf"

    distillation_weight: NonNegative = 1.0
    """Lambda, the weight of the distillation; how it was chosen: see the class."""
    temperature: Positive = 2.0
    """Temperature that softens both distributions, the paper's."""

    def build(self, *, seed: int) -> Lwf:
        from components.methods.lwf import Lwf

        return Lwf(self, seed=seed)
