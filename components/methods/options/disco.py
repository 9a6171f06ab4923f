"""Options of method disco. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from components.core.options import Positive
from components.methods.options.prototypes import PrototypeConfig

if TYPE_CHECKING:
    from components.methods.disco import Disco


@dataclass(frozen=True, kw_only=True)
class DiscoConfig(PrototypeConfig):
    """A LoRA per task, all summed with weights from how near the instruction is to each task's mean instruction."""

    name: ClassVar[str] = "disco"

    activation: Literal["softmax", "nearest"] = "softmax"
    """Whether all sub-spaces serve, weighed by a softmax as released, or the nearest one alone."""
    temperature: Positive = 0.05
    """Temperature of the softmax, as released."""

    def build(self, *, seed: int) -> Disco:
        from components.methods.disco import Disco

        return Disco(self, seed=seed)
