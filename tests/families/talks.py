"""Conversations that every model type is tried on, as messages for transformers and as rows for Littoral."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from components.data.rows import Row, Turn
from tests.families import tiny
from tests.families.reference import Message, said

ANSWERS = ("Red.", "a cat on\n\nthe mat")


def picture(width: int, height: int) -> Image.Image:
    """Noise, the same at every call."""
    numbers = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(numbers.integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversations(name: str) -> list[list[Message]]:
    """Rows of a batch: pictures of different shapes, none, and, where the type takes it, a second question."""
    short, long = (said("assistant", answer) for answer in ANSWERS)
    plain = [said("user", "is the sky blue"), short]
    talk = [said("user", "hi"), short, said("user", "and the\nother one?"), long]
    if name in tiny.TEXT_ONLY:
        return [plain, talk]
    shown = [
        [said("user", picture(40, 60), "what is this"), short],
        [said("user", picture(64, 20), "describe the thing"), long],
        plain,
    ]
    if name == "paligemma":
        return shown
    return [*shown, [said("user", "hi"), short, said("user", picture(33, 33), "and this?"), long]]


def row(messages: list[Message], number: int) -> Row:
    """The row that says the same."""
    image, turns = None, list[Turn]()
    for message in messages:
        text = ""
        for part in message["content"]:
            if part["type"] == "image":
                image = part["image"]
                text += "<image>\n"
            else:
                text += part["text"]
        turns.append(Turn(speaker="human" if message["role"] == "user" else "gpt", text=text))
    encoded = io.BytesIO()
    if image is not None:
        image.save(encoded, "PNG")
    return Row(
        sample_id=f"r{number}",
        task="t",
        split="train",
        turns=tuple(turns),
        answers=(),
        metric="exact_match",
        source="",
        image=encoded.getvalue() if image is not None else None,
        width=None if image is None else image.width,
        height=None if image is None else image.height,
    )


def rows(name: str) -> list[Row]:
    """The rows of `conversations`."""
    return [row(messages, number) for number, messages in enumerate(conversations(name))]
