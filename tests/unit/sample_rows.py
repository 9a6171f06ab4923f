"""Rows for model tests: tiny pictures of one colour and short conversations."""

from __future__ import annotations

import io

from PIL import Image

from components.data.rows import Row, Turn

Colour = tuple[int, ...]


def picture(colour: Colour, *, size: tuple[int, int] = (20, 20), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def row(*texts: str, image: bytes | None = None, sample_id: str = "r1") -> Row:
    """Turns from `texts`, human first; give the placeholder yourself where the row has a picture."""
    turns = tuple(Turn(speaker=("human", "gpt")[index % 2], text=text) for index, text in enumerate(texts))
    return Row(
        sample_id=sample_id,
        task="t",
        split="train",
        turns=turns,
        answers=(texts[-1],),
        metric="exact",
        source="test",
        image=image,
        width=20 if image else None,
        height=20 if image else None,
    )
