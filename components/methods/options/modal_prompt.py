"""Options of method modal_prompt. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from components.core.options import Count, NonNegative, Share
from components.methods.options.base import MethodConfig

if TYPE_CHECKING:
    from components.methods.modal_prompt import ModalPrompt


@dataclass(frozen=True, kw_only=True)
class ModalPromptConfig(MethodConfig):
    """A soft prompt per task; the few whose prototypes resemble a sample's picture and text stand before its input."""

    name: ClassVar[str] = "modal_prompt"
    is_routed: ClassVar[bool] = True
    slots_are_tasks: ClassVar[bool] = True
    starts_as_backbone: ClassVar[bool] = False  # prompts draw attention, whatever their values

    prompt_length: Count = 10
    """Tokens of a task's prompt, as released."""
    top_k: Count = 3
    """Prompts that serve a sample, as released."""
    image_share: Share = 0.5
    """Share of the picture in the similarity, the rest is the text's; as released."""
    image_pull: NonNegative = 1.0
    """Weight of 1 - cos(picture, prototype), as released."""
    text_pull: NonNegative = 1.0
    """Weight of 1 - cos(text, prototype), as released."""
    sentence_encoder: str = "minilm"
    """What embeds instructions."""

    @classmethod
    def tiny(cls) -> Self:
        # pocket averages over the sequence: only a long prompt weighs more than the text
        return cls(sentence_encoder="hash", prompt_length=100)

    def build(self, *, seed: int) -> ModalPrompt:
        from components.methods.modal_prompt import ModalPrompt

        return ModalPrompt(self, seed=seed)
