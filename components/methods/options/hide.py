"""Options of method hide. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from components.core.options import Positive
from components.methods.options.prototypes import PrototypeConfig

if TYPE_CHECKING:
    from components.methods.hide import Hide


@dataclass(frozen=True, kw_only=True)
class HideConfig(PrototypeConfig):
    """A LoRA per task: the last layer mixes them by picture and text likeness, the other layers use one fused LoRA."""

    name: ClassVar[str] = "hide"

    init: Literal["kaiming", "gaussian", "small"] = "small"
    """How a branch's down starts: N(0, 0.01) as in the code (small), peft's draw, or N(0, 1 / rank)."""
    fusion: Literal["factors", "sum", "mean"] = "factors"
    """How all layers but the last merge the tasks' branches: see the class; factors is the code's."""
    temperature: Positive = 0.1
    """Temperature of the softmax over tasks, as released."""

    def build(self, *, seed: int) -> Hide:
        from components.methods.hide import Hide

        return Hide(self, seed=seed)
