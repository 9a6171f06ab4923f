"""The segments of a stream without boundaries, as splits: each holds the rows that its mixture gives it."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.core.location import Place
from components.data.cache import kept_split
from components.data.mixture import Mixture
from components.data.rows import Row, Split, row_from_record, write_split
from components.data.shards import parquet
from components.data.tasks import TaskStream


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What is learned between two points at which the model is scored."""

    name: str
    train: Split
    rows: Mapping[str, int]  # training rows by task, those of no row left out


def segments_of(stream: TaskStream, mixture: Mixture, root: Place) -> tuple[Segment, ...]:
    """The segments, in order; kept below `root` and written at the first use.

    A segment of one whole task is that task's own split, so that a mixture that mixes nothing learns the same bits as
    clear boundaries. The others copy their rows, the tasks' evenly interleaved. Raises `ConfigError`, `DataError`.
    """
    assigned = mixture.assigned({task.name: task.train.num_rows for task in stream.tasks})
    digests = [task.train.digest for task in stream.tasks]
    text = "\n".join([mixture.identity(len(stream.tasks)), *stream.task_names, *digests])
    folder, found = root / hashlib.sha256(text.encode()).hexdigest()[:24], list[Segment]()
    for number, name in enumerate(mixture.segment_names(len(stream.tasks))):
        wanted = {task: segment == number for task, segment in assigned.items()}
        rows = {task: int(chosen.sum()) for task, chosen in wanted.items() if chosen.any()}
        splits = {task.name: task.train for task in stream.tasks if task.name in rows}
        if len(rows) == 1 and (only := next(iter(rows))) and rows[only] == splits[only].num_rows:
            found.append(Segment(name=name, train=splits[only], rows=rows))
            continue
        card: dict[str, object] = {"mixture": mixture.to_json(), "rows": rows, "of": digests}
        write = partial(_write, splits=splits, wanted=wanted, name=name, card=card)
        found.append(Segment(name=name, train=kept_split(folder / name, write), rows=rows))
    return tuple(found)


def _write(
    folder: Path,
    *,
    splits: Mapping[str, Split],
    wanted: Mapping[str, NDArray[np.bool_]],
    name: str,
    card: dict[str, object],
) -> None:
    """The wanted rows of all splits, each split's spread evenly over the whole; memory stays at a group of each."""
    parts = [_placed(splits[task], wanted[task], index) for index, task in enumerate(splits)]
    rows = (row for _, row in heapq.merge(*parts, key=lambda placed: placed[0]))
    write_split(rows, folder, task=name, split="train", card=card)


def _placed(split: Split, wanted: NDArray[np.bool_], index: int) -> Iterator[tuple[tuple[float, int], Row]]:
    """The wanted rows in stored order, each with its place in 0..1 and the split's index."""
    count = int(wanted.sum())
    for number, row in enumerate(_chosen(split, wanted)):
        yield ((number + 0.5) / count, index), row


def _chosen(split: Split, wanted: NDArray[np.bool_]) -> Iterator[Row]:
    start = 0
    for number, path in enumerate(split.shard_paths()):
        with parquet(path):
            file = split.whole_shard(number)
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                places = np.flatnonzero(wanted[start : start + size])
                start += size
                records = file.read_row_group(group).take(pa.array(places)).to_pylist() if len(places) else []
                yield from map(row_from_record, records)
