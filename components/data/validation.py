"""A validation part: training rows that are held back, chosen by a hash of what a row shows.

A row's side is decided by its first picture, or by its questions where it has none. So rows that begin with the same
picture are on one side, in whichever task they occur, and the cut depends neither on seeds, orders and workers nor on
ids and their order in a file. A larger share holds back the rows of a smaller one and more.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from components.core.errors import DataError
from components.core.location import Place
from components.data.cache import kept_split
from components.data.rows import Row, Split, write_split

VALIDATION = "validation"


def held_back(row: Row, share: float) -> bool:
    """Whether a row belongs to the validation part of this `share` (0..1 of the distinct pictures)."""
    asked = [turn.text for turn in row.turns if turn.speaker == "human"]
    shown = row.image if row.image is not None else "\n".join(asked).encode()
    digest = hashlib.sha256(b"validation\0" + shown).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def cut(split: Split, share: float, root: Place) -> tuple[Split, Split]:
    """The rows of `split` to train on and those held back, as splits kept below `root`.

    Raises `DataError` where either would be empty.
    """
    folder = root / f"{split.digest[:16]}-{share:g}"
    held = cache(partial(_held, split, share))  # asked for only where a part is not on disk yet

    def kept(name: str, wanted: bool) -> Split:
        def write(path: Path) -> None:
            rows = (replace(row, split=name) for row, back in zip(split.rows(), held(), strict=True) if back == wanted)
            facts = {"cut_from": split.digest, "share": share, "rows": held().count(wanted)}
            write_split(rows, path, task=split.task, split=name, card={**split.card, **facts})

        return kept_split(folder / name, write)

    return kept("train", False), kept(VALIDATION, True)


def _held(split: Split, share: float) -> list[bool]:
    """Whether each row, in stored order, is held back. Raises `DataError` when either side would be empty."""
    held = [held_back(row, share) for row in split.rows()]
    if all(held) or not any(held):
        raise DataError(
            f"stream.validation {share:g} takes {'all' if all(held) and held else 'none'} of the {len(held)} training "
            f"rows of {split.task}: rows that share a picture stay together. Give another share, or more pictures."
        )
    return held
