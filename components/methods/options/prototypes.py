"""Options of methods with task prototypes. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from components.core.options import Positive
from components.methods.options.base import Export
from components.methods.options.sequential_lora import SequentialLoraConfig


@dataclass(frozen=True, kw_only=True)
class PrototypeConfig(SequentialLoraConfig):
    """Options that methods with task prototypes share."""

    export: ClassVar[Export] = "soft"
    is_routed: ClassVar[bool] = True
    slots_are_tasks: ClassVar[bool] = True

    sentence_encoder: str = "minilm"
    """What embeds instructions."""
    prototype: Literal["unit", "raw"] = "unit"
    """Whether samples count alike (unit), or by their features' lengths, as released (raw)."""
    temperature: Positive = 0.1
    """Temperature of the weights over tasks."""

    @classmethod
    def tiny(cls) -> Self:
        return cls(sentence_encoder="hash")
