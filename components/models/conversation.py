"""What a conversation is before and after a template: turns of texts and pictures, and the string with its spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

Span = tuple[int, int]  # characters, the end not included


class Shown(str):
    """What stands for a picture in a turn; unlike texts, it is the template's and may hold special tokens."""


class Said(NamedTuple):
    """One turn as a template takes it: texts and pictures."""

    speaker: str  # "human" or "gpt"
    parts: tuple[str | Shown, ...]


@dataclass(kw_only=True)
class Rendered:
    """A conversation as text; what is outside `said` comes from the template."""

    text: str = ""
    said: list[Span] = field(default_factory=list)
    """What users wrote: questions and answers."""
    answers: list[Span] = field(default_factory=list)
    """Answers with their end token, in order."""

    def add(self, text: str) -> None:
        """Text of the template."""
        self.text += text

    def say(self, turn: Said) -> None:
        """Text of a user, and pictures where they belong."""
        for part in turn.parts:
            if isinstance(part, Shown):
                self.text += part
            else:
                self.said.append((len(self.text), len(self.text) + len(part)))
                self.text += part


class Template(Protocol):
    """Renders turns; with `answering`, the text ends where the model is to continue."""

    def __call__(self, turns: Sequence[Said], answering: bool) -> Rendered: ...


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The template of one backbone."""

    name: str
    """vicuna_v1, llava_v1, chatml, or chat: the model's own."""
    why: str
    render: Template
    end: str
    """The token that ends every answer."""


def without_edges(turn: Said) -> Said:
    """Without the whitespace between pictures and texts: templates write their own."""
    if not any(isinstance(part, Shown) for part in turn.parts):
        return turn
    parts = [part for part in turn.parts if isinstance(part, Shown) or part.strip()]
    texts = [index for index, part in enumerate(parts) if not isinstance(part, Shown)]
    if texts and texts[0] > 0:
        parts[texts[0]] = parts[texts[0]].lstrip()
    if texts and texts[-1] < len(parts) - 1:
        parts[texts[-1]] = parts[texts[-1]].rstrip()
    return Said(turn.speaker, tuple(parts))
