"""A JPEG that is proved is decoded small: what is found, and what is refused, is the same as in full size."""

from __future__ import annotations

import io
import random
import warnings

import numpy as np
from PIL import Image, ImageOps

from components.data.formats.pictures import PICTURE_ERRORS, proved
from components.data.problems import ItemError

EXIF_ORIENTATION = 0x0112


def jpeg(number: int) -> bytes:
    draw = np.random.default_rng(number)
    width, height = (int(side) for side in draw.integers(8, 90, 2))
    coarse = Image.fromarray(draw.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8))
    exif, file = Image.Exif(), io.BytesIO()
    exif[EXIF_ORIENTATION] = number % 9
    picture = coarse.resize((width, height)).convert(("RGB", "L", "CMYK")[number % 3])
    picture.save(file, "JPEG", quality=int(draw.integers(20, 95)), exif=exif.tobytes(), progressive=number % 4 == 1)
    return file.getvalue()


def damaged(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        changed[draw.randrange(len(changed) // 2, len(changed))] = draw.randrange(256)
    return bytes(changed[: draw.randrange(1, len(changed))] if draw.random() < 0.3 else changed)


def size_in_full(data: bytes) -> tuple[int, int] | None:
    """By Pillow alone: the size of the picture turned upright, or None where it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return ImageOps.exif_transpose(image).size
    except PICTURE_ERRORS:
        return None


def size_proved(data: bytes) -> tuple[int, int] | None:
    try:
        found = proved(data, "one")
    except ItemError:
        return None
    assert found.data == data
    return found.size


def test_whole_and_damaged_pictures_are_judged_as_in_full_size() -> None:
    draw, seen = random.Random(0), list[tuple[int, int] | None]()
    with warnings.catch_warnings(action="ignore"):  # Pillow's, of broken EXIF
        for number in range(60):
            whole = jpeg(number)
            assert size_proved(whole) is not None
            for data in (whole, *(damaged(whole, draw) for _ in range(12))):
                seen.append(size_in_full(data))
                assert size_proved(data) == seen[-1], number
    assert 0.1 < seen.count(None) / len(seen) < 0.9
