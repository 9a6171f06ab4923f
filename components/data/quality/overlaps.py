"""What the splits of a stream share, counted in rows: look-alike pictures, equal questions, and both at once.

Pictures are compared by a difference hash: 64 bits that say whether each of 8 x 8 fields of the grey picture is
brighter than its right neighbour (Neal Krawetz's dHash). Re-encoded, rescaled and slightly recoloured copies mostly
keep it; crops and mirrored ones do not. Only equal hashes count, so some copies are missed; and different pictures of
one layout, such as forms or charts, can share one. A count is a reason to look, and names rows to look at.

Nearly blank pictures share a hash whatever they show, a page with a line of text and one with a dot. They are alike
when their bytes are equal; those with an equal hash alone are counted apart.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.data.formats.parallel_map import SERIAL, OrderedMap
from components.data.formats.pictures import small_image
from components.data.rows import Row, Split, plain_instruction
from components.data.tasks import TaskStream

FIELDS = 8
STEP = 4  # grey levels by which neighbouring fields must differ to count as different
CONTRASTS = 10  # of 64 pairs of neighbours: a picture with fewer is nearly blank
EXAMPLES = 3
_MIX = 0x9E3779B97F4A7C15  # an odd number that spreads bits: a picture's key and a question's become one key
_64 = (1 << 64) - 1

Keys = NDArray[np.uint64]
RowNumbers = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Rows of a split, of which `pictured` have a picture, and how many of them other rows show or ask, too."""

    rows: int
    pictured: int
    pictures: int
    """Rows with a picture that looks like one of the others."""
    questions: int
    """Rows that ask a question of the others, case and spaces aside."""
    repeats: int
    """Rows that ask a question of the others about such pictures, all of them in order, or both without any."""
    near_blank: int
    """Rows with a nearly blank picture that has the hash of one of the others that is, too."""

    @property
    def found(self) -> bool:
        return bool(self.pictures or self.questions or self.near_blank)


@dataclass(frozen=True, kw_only=True)
class Overlap(Counts):
    """What rows of `second` share with `first`, both "TASK SPLIT"; of a training and a test split, `first` trains.

    `examples` are sample ids of look-alike pictures, one of each split.
    """

    first: str
    second: str
    examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Leak(Counts):
    """What the test rows of one task share with all training rows of the stream."""

    task: str

    @property
    def sentence(self) -> str:
        """The counts that are not 0, as a sentence."""
        counts = (
            (self.pictures, "look like a training picture"),
            (self.questions, "ask a training question"),
            (self.repeats if self.pictured else 0, "ask it about such a picture"),
            (self.near_blank, "are nearly blank, as a training picture is"),
        )
        told = [(count, what) for count, what in counts if count]
        parts = [
            f"{count:,} of {self.rows:,}{'' if at else ' test rows'} {what}" for at, (count, what) in enumerate(told)
        ]
        return f"{self.task}: {', '.join(parts)}"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Pairs of splits that share anything, in the stream's order, and tasks whose test rows share any with training."""

    pairs: tuple[Overlap, ...] = ()
    leaks: tuple[Leak, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """What test rows share with training rows, a sentence a task without its period."""
        return tuple(leak.sentence for leak in self.leaks)


@dataclass(kw_only=True)
class _Marks:
    """Keys of one kind and the row (from 0) that each belongs to; 8 bytes each, where Python objects would take 60."""

    keys: array[int] = field(default_factory=lambda: array("Q"))
    rows: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, key: int, row: int) -> None:
        self.keys.append(key)
        self.rows.append(row)

    def settled(self) -> _Set:
        keys = np.array(self.keys, np.uint64)
        distinct, first = np.unique(keys, return_index=True)
        rows = np.array(self.rows, np.intp)
        return _Set(keys=keys, rows=rows, distinct=distinct, first=rows[first])


@dataclass(frozen=True, kw_only=True)
class _Set:
    """The same as arrays; `distinct` keys are sorted, and `first` is the first row that has each."""

    keys: Keys
    rows: RowNumbers
    distinct: Keys
    first: RowNumbers

    def rows_in(self, others: Keys) -> int:
        """How many rows have a key that is one of `others`."""
        return len(np.unique(self.rows[np.isin(self.keys, others)]))


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One split."""

    split: Split
    pictures: _Set
    questions: _Set
    repeats: _Set
    near_blank: _Set

    @property
    def name(self) -> str:
        return f"{self.split.task} {self.split.split}"

    def shared_with(self, *others: _Seen) -> dict[str, int]:
        """The counts of `Overlap`, of this split's rows against those of `others`."""
        counts = {"rows": self.split.num_rows, "pictured": len(np.unique(self.pictures.rows))}
        for kind in ("pictures", "questions", "repeats", "near_blank"):
            own: _Set = getattr(self, kind)
            theirs: list[_Set] = [getattr(other, kind) for other in others]
            counts[kind] = own.rows_in(np.concatenate([one.distinct for one in theirs]))
        return counts

    def sample_ids(self, rows: Sequence[int]) -> list[str]:
        """The ids of some rows."""
        wanted = set(rows)
        found = {row: str(name) for row, name in enumerate(self.split.column("sample_id")) if row in wanted}
        return [found[row] for row in rows]


def overlaps_of(stream: TaskStream, *, in_order: OrderedMap = SERIAL) -> Shared:
    """What the splits share; reads each split once, a few rows at a time. `in_order` opens the pictures."""
    seen = [_seen(split, in_order) for split in stream.splits]
    pairs = [_overlap(first, second) for first, second in combinations(seen, 2)]
    trained = [one for one in seen if one.split.split == "train"]
    leaks = [Leak(task=one.split.task, **one.shared_with(*trained)) for one in seen if one.split.split == "test"]
    return Shared(pairs=tuple(pair for pair in pairs if pair.found), leaks=tuple(leak for leak in leaks if leak.found))


def picture_hash(data: bytes) -> tuple[int, bool]:
    """The difference hash of an encoded picture, and whether the picture is nearly blank."""
    small = small_image(data, 8 * FIELDS).convert("L").resize((FIELDS + 1, FIELDS), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)  # [8, 9]
    contrasts = int((np.abs(np.diff(grey, axis=1)) >= STEP).sum())
    brighter = grey[:, :-1] > grey[:, 1:]
    return int.from_bytes(np.packbits(brighter).tobytes(), "big"), contrasts < CONTRASTS


def _seen(split: Split, in_order: OrderedMap) -> _Seen:
    pictures, questions, repeats, near_blank = _Marks(), _Marks(), _Marks(), _Marks()
    for row, (keys, blanks, asked) in enumerate(in_order(_marks, split.rows())):
        shown = 0
        for key in keys:
            pictures.add(key, row)
            shown = (shown * _MIX ^ key) & _64
        for blank in blanks:
            near_blank.add(blank, row)
        for question in asked:
            questions.add(question, row)
            repeats.add((question ^ (shown * _MIX)) & _64, row)
    return _Seen(
        split=split,
        pictures=pictures.settled(),
        questions=questions.settled(),
        repeats=repeats.settled(),
        near_blank=near_blank.settled(),
    )


def _marks(row: Row) -> tuple[list[int], list[int], list[int]]:
    """The keys of a row's pictures, the hashes of those that are nearly blank, and the keys of its questions."""
    texts = [plain_instruction(turn.text) for turn in row.turns if turn.speaker == "human"]
    asked = [_digest(" ".join(text.casefold().split()).encode()) for text in texts]
    keys, blanks = list[int](), list[int]()
    for image in row.images:
        found, nearly_blank = picture_hash(image)
        keys.append(_digest(image) if nearly_blank else found)
        blanks += [found] if nearly_blank else []
    return keys, blanks, asked


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _overlap(first: _Seen, second: _Seen) -> Overlap:
    if (first.split.split, second.split.split) == ("test", "train"):
        first, second = second, first
    _, here, there = np.intersect1d(
        first.pictures.distinct, second.pictures.distinct, assume_unique=True, return_indices=True
    )
    early = np.argsort(first.pictures.first[here])[:EXAMPLES]
    names = [
        seen.sample_ids([int(row) for row in seen.pictures.first[chosen[early]]])
        for seen, chosen in ((first, here), (second, there))
    ]
    return Overlap(
        first=first.name, second=second.name, **second.shared_with(first), examples=tuple(zip(*names, strict=True))
    )
