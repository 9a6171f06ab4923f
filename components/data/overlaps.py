"""What the splits of a stream share: look-alike pictures and equal questions, between tasks and between train and test.

Pictures are compared by a difference hash: 64 bits that say whether each of 8 x 8 fields of the grey picture is
brighter than its right neighbour (Neal Krawetz's dHash). Re-encoded, rescaled and slightly recoloured copies mostly
keep it; crops and mirrored ones do not. Only equal hashes count, so some copies are missed; and different pictures of
one layout, such as forms or charts, can share one. A count is a reason to look, and names rows to look at.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.data.in_order import ONE_BY_ONE, InOrder
from components.data.rows import Row, Split, plain_instruction
from components.data.tasks import TaskStream

FIELDS = 8
FLAT = 8  # grey levels: a picture that varies by less has no hash, or all blank pages would be alike
EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What two splits share."""

    first: str  # "task split"
    second: str
    pictures: int  # hashes that both have
    questions: int  # questions that both have, case and spaces aside
    examples: tuple[tuple[str, str], ...] = ()  # sample ids of look-alike pictures, one of each split


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One split's different pictures, by hash with the first row (from 0) that has each, and its questions as digests.

    8 bytes each: a million rows of Python objects would take hundreds of megabytes.
    """

    split: Split
    pictures: NDArray[np.uint64]
    rows: NDArray[np.intp]
    questions: NDArray[np.uint64]

    @property
    def name(self) -> str:
        return f"{self.split.task} {self.split.split}"

    def sample_ids(self, rows: Sequence[int]) -> list[str]:
        """The ids of some rows."""
        wanted = set(rows)
        found = {row: str(name) for row, name in enumerate(self.split.column("sample_id")) if row in wanted}
        return [found[row] for row in rows]


def overlaps_of(stream: TaskStream, *, in_order: InOrder = ONE_BY_ONE) -> list[Overlap]:
    """Every pair of splits that share anything, in the stream's order; reads each split once, a few rows at a time.

    `in_order` opens the pictures.
    """
    splits = [split for task in stream.tasks for split in (task.train, task.test)]
    return list(_shared([_seen(split, in_order) for split in splits]))


def picture_hash(data: bytes) -> int | None:
    """The difference hash of an encoded picture, or None for one of almost a single grey."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("L", (8 * FIELDS, 8 * FIELDS))  # lets JPEG decode small, at once
        grey = image.convert("RGBA") if image.has_transparency_data else image
        if grey.mode == "RGBA":  # what is see-through counts as white
            grey = Image.alpha_composite(Image.new("RGBA", grey.size, "white"), grey)
        small = grey.convert("L").resize((FIELDS + 1, FIELDS), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.int16)
    if int(values.max()) - int(values.min()) < FLAT:
        return None
    brighter = values[:, :-1] > values[:, 1:]
    return int.from_bytes(np.packbits(brighter).tobytes(), "big")


def _seen(split: Split, in_order: InOrder) -> _Seen:
    hashes, rows, asked = array("Q"), array("Q"), array("Q")
    for row, (found, questions) in enumerate(in_order(_marks, split.rows())):
        if found is not None:
            hashes.append(found)
            rows.append(row)
        asked.extend(questions)
    pictures, first = np.unique(np.array(hashes, np.uint64), return_index=True)
    questions = np.unique(np.array(asked, np.uint64))
    return _Seen(split=split, pictures=pictures, rows=np.array(rows, np.intp)[first], questions=questions)


def _marks(row: Row) -> tuple[int | None, list[int]]:
    """The hash of a row's picture and the digests of its questions, case and spaces aside."""
    texts = [plain_instruction(turn.text) for turn in row.turns if turn.speaker == "human"]
    digests = (hashlib.sha256(" ".join(text.casefold().split()).encode()).digest() for text in texts)
    found = picture_hash(row.image) if row.image is not None else None
    return found, [int.from_bytes(digest[:8], "big") for digest in digests]


def _shared(everything: Iterable[_Seen]) -> Iterator[Overlap]:
    for first, second in combinations(everything, 2):
        alike, here, there = np.intersect1d(first.pictures, second.pictures, assume_unique=True, return_indices=True)
        asked = np.intersect1d(first.questions, second.questions, assume_unique=True)
        if not len(alike) and not len(asked):
            continue
        early = np.argsort(first.rows[here])[:EXAMPLES]
        names = [
            seen.sample_ids([int(row) for row in seen.rows[places[early]]])
            for seen, places in ((first, here), (second, there))
        ]
        yield Overlap(
            first=first.name,
            second=second.name,
            pictures=len(alike),
            questions=len(asked),
            examples=tuple(zip(*names, strict=True)),
        )
