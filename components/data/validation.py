"""A validation part: training rows that are held back, chosen by a hash of what a row shows.

A row's side is decided by its picture, or by its questions where it has none. So rows that share a picture lie on one
side, in whichever task they occur, and the cut depends neither on seeds, orders and workers nor on ids and their order
in a file. A larger share holds back the rows of a smaller one and more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from components.core.errors import DataError
from components.data.rows import Row, Split

VALIDATION = "validation"


def held_back(row: Row, share: float) -> bool:
    """Whether a row belongs to the validation part of this `share` (0..1 of the distinct pictures)."""
    shown = row.image if row.image is not None else "\n".join(_asked(row)).encode()
    digest = hashlib.sha256(b"validation\0" + shown).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def sides(split: Split, share: float) -> list[bool]:
    """Of every row in stored order: is it held back? Raises `DataError` where either side would be empty."""
    held = [held_back(row, share) for row in split.rows()]
    if all(held) or not any(held):
        raise DataError(
            f"stream.validation {share:g} takes {'all' if all(held) and held else 'none'} of the {len(held)} training "
            f"rows of {split.task}: rows that share a picture stay together. Give another share, or more pictures."
        )
    return held


def part(split: Split, held: list[bool], *, wanted: bool) -> Iterator[Row]:
    """The rows of `split` that are held back (`wanted`), or the others, in stored order."""
    return (row for row, back in zip(split.rows(), held, strict=True) if back == wanted)


def _asked(row: Row) -> Iterator[str]:
    return (turn.text for turn in row.turns if turn.speaker == "human")
