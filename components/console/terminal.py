"""Where commands print: rich's console, on which no text of others can steer the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from components.core.visible import visible


class Terminal(Console):
    """Every text that is rendered is neutralised, those in tables and live bars too; rich's own codes come later."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
