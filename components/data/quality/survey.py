"""What the rows of a prepared stream or suite look like: sizes of pictures, lengths of answers, and a few rows to read.

Every split is read once, a row at a time; in memory are a few numbers for each picture (about 24 bytes), a digest of
each picture and the rows that are shown.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from components.data.quality.thumbnails import Album, Thumbnail
from components.data.rows import Row, Split, plain_instruction
from components.data.texts import TextFacts

SAMPLES = 3  # rows shown of each split
LARGE = 10_000_000  # pixels; a picture beyond costs more to decode than to learn
_SAMPLE_ROOM, _PAIR_ROOM = 1_200_000, 400_000  # characters of data URIs: a page of them stays below 3 MB


@dataclass(frozen=True, kw_only=True)
class Range:
    """Smallest, median and largest of some whole numbers; the median of an even count is the lower one."""

    smallest: int
    median: int
    largest: int


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """Pictures of one split."""

    rows: int
    """Rows with a picture; `distinct` counts pictures with other bytes, and the ranges are over all pictures."""
    distinct: int
    width: Range
    height: Range
    file_bytes: Range
    large: int
    """Pictures of more than `LARGE` pixels, of every row."""


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """A row to read."""

    sample_id: str
    source: str
    turns: tuple[tuple[str, str], ...]
    """Speaker and text, without placeholders of pictures."""
    answers: tuple[str, ...]
    picture: Thumbnail | None


@dataclass(frozen=True, kw_only=True)
class SplitSurvey:
    """One split."""

    name: str
    rows: int
    pictures: PictureFacts | None
    answer_characters: Range
    """Lengths of the first accepted answers."""
    texts: TextFacts
    samples: tuple[SampleRow, ...]


@dataclass(frozen=True, kw_only=True)
class StreamSurvey:
    """All splits, and the pictures that were asked for, by split and sample id."""

    splits: tuple[SplitSurvey, ...]
    pictures: dict[tuple[str, str], Thumbnail]


@dataclass(kw_only=True)
class _Numbers:
    """What is gathered of one split."""

    widths: array[int] = field(default_factory=lambda: array("l"))
    heights: array[int] = field(default_factory=lambda: array("l"))
    sizes: array[int] = field(default_factory=lambda: array("l"))
    pictured: int = 0
    answers: array[int] = field(default_factory=lambda: array("l"))
    digests: set[bytes] = field(default_factory=set)
    large: int = 0

    def add(self, row: Row) -> None:
        self.answers.append(len(row.answers[0]))
        self.pictured += bool(row.images)
        for image, width, height in row.pictures:
            if image is None or width is None or height is None:
                continue
            self.widths.append(width)
            self.heights.append(height)
            self.sizes.append(len(image))
            self.digests.add(hashlib.sha256(image).digest()[:8])
            self.large += width * height > LARGE

    def pictures(self) -> PictureFacts | None:
        if not self.sizes:
            return None
        return PictureFacts(
            rows=self.pictured,
            distinct=len(self.digests),
            width=range_of(self.widths),
            height=range_of(self.heights),
            file_bytes=range_of(self.sizes),
            large=self.large,
        )


def range_of(numbers: Collection[int]) -> Range:
    """Smallest, median and largest; there must be one number at least."""
    ordered = sorted(numbers)
    return Range(smallest=ordered[0], median=ordered[(len(ordered) - 1) // 2], largest=ordered[-1])


def survey(
    splits: Iterable[Split],
    wanted: Mapping[str, Collection[str]],
    *,
    room: Mapping[str, int] | None = None,
    seed: int = 0,
) -> StreamSurvey:
    """Read every split once; `wanted` names sample ids by split ("task split") whose pictures are kept.

    `room` has the longest reply, in tokens, by split of those that are answered.
    The rows shown are drawn by `seed` and the split's name, the same at every call.
    """
    samples, pairs = Album(room=_SAMPLE_ROOM), Album(room=_PAIR_ROOM)
    pictures: dict[tuple[str, str], Thumbnail] = {}
    found: list[SplitSurvey] = []
    for split in splits:
        name = f"{split.task} {split.split}"
        shown, numbers, drawn = wanted.get(name, ()), _Numbers(), _drawn(split, name, seed)
        texts = TextFacts(max_new_tokens=(room or {}).get(name))
        rows: list[SampleRow] = []
        for at, row in enumerate(split.rows()):
            numbers.add(row)
            texts.add(row)
            if at in drawn:
                rows.append(_sample(row, samples))
            if row.sample_id in shown and row.images:
                pictures[name, row.sample_id] = pairs.thumbnail(*row.images)
        found.append(
            SplitSurvey(
                name=name,
                rows=split.num_rows,
                pictures=numbers.pictures(),
                answer_characters=range_of(numbers.answers),
                texts=texts,
                samples=tuple(rows),
            )
        )
    return StreamSurvey(splits=tuple(found), pictures=pictures)


def _drawn(split: Split, name: str, seed: int) -> set[int]:
    count = split.num_rows
    return set(random.Random(f"{seed} {name}").sample(range(count), min(SAMPLES, count)))


def _sample(row: Row, album: Album) -> SampleRow:
    return SampleRow(
        sample_id=row.sample_id,
        source=row.source,
        turns=tuple((turn.speaker, plain_instruction(turn.text)) for turn in row.turns),
        answers=row.answers,
        picture=album.thumbnail(*row.images) if row.images else None,
    )
