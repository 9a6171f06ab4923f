"""How the tasks of mini-COAST ask for an answer: one line, always the last of the prompt, as LLaVA's prompts do.

All rows of a task share that line, and so do tasks whose answers have the same form: methods that compare
instructions rely on it. The wording is our own.
"""

from __future__ import annotations

SHORT = "Reply with one word or a short phrase."  # chartqa and docvqa; conversation and reasoning; the picture tasks
ASKED = "Reply with the number, letter or word that is asked for."  # iconqa
MEDICAL = "Reply with a brief medical answer."  # medicalqa
BOX = "Give its bounding box [x1,y1,x2,y2]."  # referring


def lines(*parts: str) -> str:
    """A prompt of several lines."""
    return "\n".join(parts)
