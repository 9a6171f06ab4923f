"""What the splits of a stream share: look-alike pictures and equal questions, between tasks and between train and test.

Pictures are compared by a difference hash: 64 bits that say whether each of 8 x 8 fields of the grey picture is
brighter than its right neighbour (Neal Krawetz's dHash). Re-encoded, rescaled and slightly recoloured copies mostly
keep it; crops and mirrored ones do not. Only equal hashes count, so some copies are missed; and different pictures of
one layout, such as forms or charts, can share one. A count is a reason to look, and names rows to look at.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from PIL import Image

from components.data.rows import Split, plain_instruction
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
    """One split's pictures by hash (with a sample id) and its questions as digests."""

    name: str
    pictures: dict[int, str] = field(default_factory=dict)
    questions: set[bytes] = field(default_factory=set)


def overlaps_of(stream: TaskStream) -> list[Overlap]:
    """Every pair of splits that share anything, in the stream's order; reads each split once, a row at a time."""
    splits = [split for task in stream.tasks for split in (task.train, task.test)]
    return list(_shared([_seen(split) for split in splits]))


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


def _seen(split: Split) -> _Seen:
    seen = _Seen(name=f"{split.task} {split.split}")
    for row in split.rows():
        if row.image is not None and (found := picture_hash(row.image)) is not None:
            seen.pictures.setdefault(found, row.sample_id)
        for turn in row.turns:
            if turn.speaker == "human":
                asked = " ".join(plain_instruction(turn.text).casefold().split())
                seen.questions.add(hashlib.sha256(asked.encode()).digest()[:8])
    return seen


def _shared(everything: Iterable[_Seen]) -> Iterator[Overlap]:
    for first, second in combinations(everything, 2):
        alike = [found for found in first.pictures if found in second.pictures]
        asked = first.questions & second.questions
        if alike or asked:
            yield Overlap(
                first=first.name,
                second=second.name,
                pictures=len(alike),
                questions=len(asked),
                examples=tuple((first.pictures[found], second.pictures[found]) for found in alike[:EXAMPLES]),
            )
