"""How the tasks of mini-CoIN ask for an answer: one line, always the last of the prompt, as in CoIN.

gqa, vqav2 and ocrvqa share a line, as theirs do, so nothing but the question tells these three tasks apart. The wording
is our own.
"""

from __future__ import annotations

LETTER = "Reply with the letter of the right choice."  # scienceqa
SIGN = "Reply with words from the sign."  # textvqa
OBJECT = "Reply with the name of the object."  # imagenet
SHORT = "Reply with one word or a short phrase."  # gqa, vqav2, ocrvqa
VISIBLE = "Reply with one word, or Unanswerable if the picture shows too little."  # vizwiz
BOX = "Give the box [x1,y1,x2,y2] around this: "  # grounding; the description follows on the same line

LETTERS = "ABCD"


def lines(*parts: str) -> str:
    """A prompt of several lines."""
    return "\n".join(parts)
