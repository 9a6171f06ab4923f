"""Conversations that every model type is tried on, as messages for transformers and as rows for Littoral."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from components.data.rows import Row, RowPicture, Turn
from tests.families import tiny
from tests.families.reference import Message, said

ANSWERS = ("Red.", "a cat on\n\nthe mat")


def picture(width: int, height: int) -> Image.Image:
    """Noise, the same at every call."""
    numbers = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(numbers.integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversations(name: str) -> list[list[Message]]:
    """Rows of a batch: pictures of different shapes, none, and, where the type takes it, several and more questions."""
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
        return [*shown, [said("user", picture(48, 30), picture(20, 52), "are they alike"), short]]
    shown.append([said("user", "hi"), short, said("user", picture(33, 33), "and this?"), long])
    if name == "llava_onevision":
        return shown
    two = [said("user", picture(48, 30), picture(20, 52), "are they alike"), short]
    return [*shown, [*two, said("user", picture(48, 30), "and this?"), long]]


def row(messages: list[Message], number: int) -> Row:
    """The row that says the same."""
    images, turns = list[RowPicture](), list[Turn]()
    for message in messages:
        text = ""
        for part in message["content"]:
            if part["type"] == "image":
                encoded = io.BytesIO()
                part["image"].save(encoded, "PNG")
                images.append(RowPicture(encoded.getvalue(), *part["image"].size))
                text += "<image>\n"
            else:
                text += part["text"]
        turns.append(Turn(speaker="human" if message["role"] == "user" else "gpt", text=text))
    image, width, height = images[0] if images else (None, None, None)
    return Row(
        sample_id=f"r{number}",
        task="t",
        split="train",
        turns=tuple(turns),
        answers=(),
        metric="exact_match",
        source="",
        image=image,
        width=width,
        height=height,
        more_images=tuple(images[1:]),
    )


def rows(name: str) -> list[Row]:
    """The rows of `conversations`."""
    return [row(messages, number) for number, messages in enumerate(conversations(name))]
