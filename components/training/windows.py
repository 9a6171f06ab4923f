"""In which order the rows of splits are read, and by which rank.

Order. An epoch permutes row groups with a seed, cuts them into windows of `WINDOW_GROUPS` groups and permutes the
rows inside each window: sequential reads, a shuffle over about a thousand rows (over everything for small tasks), and
one fixed order per (seed, epoch). A position in that order is a global sample count, so a checkpoint's position is one
number.

Split over workers. Rank r of W takes the positions whose micro-batch index is r modulo W, so that an update sees the
same samples whatever W is. Each rank has its own dataset: nothing is dropped, and nothing depends on scheduling.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.core.location import Place
from components.data.rows import ROW_GROUP_ROWS, Split
from components.data.shards import Shard, group_rows_of

WINDOW_GROUPS = 16


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Which samples of an endless ordered sequence a rank gets: micro-batches r, r + W, r + 2W, ..."""

    rank: int = 0
    world_size: int = 1
    micro_batch_size: int = 1

    def takes(self, position: int) -> bool:
        return (position // self.micro_batch_size) % self.world_size == self.rank


@dataclass(frozen=True, kw_only=True)
class Window:
    """Some row groups of an epoch, in reading order, and the position of the window's first row."""

    start: int
    groups: tuple[tuple[int, int, int], ...]  # (split index, shard index, row group index)
    group_rows: tuple[int, ...]
    num_rows: int
    shuffle_seed: tuple[int, ...] | None

    def rows(self, num_rows: int) -> list[tuple[int, int, int]]:
        """(position, which of `groups`, row in it) of every row below position `num_rows`, in reading order."""
        order = np.arange(self.num_rows)
        if self.shuffle_seed is not None:
            order = np.random.default_rng(list(self.shuffle_seed)).permutation(self.num_rows)
        order = order[: num_rows - self.start]
        starts = np.cumsum([0, *self.group_rows])
        groups = np.searchsorted(starts, order, side="right") - 1
        places = zip(groups.tolist(), (order - starts[groups]).tolist(), strict=True)
        return [(self.start + index, group, row) for index, (group, row) in enumerate(places)]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive windows that one Ray Data task reads: short windows would cost more processes than they keep busy."""

    windows: tuple[Window, ...]


def plan_windows(splits: Sequence[Split], *, epochs: int, num_rows: int, seed: int | None) -> list[Window]:
    """Windows covering the first `num_rows` positions of `epochs` passes over `splits`, which are read as one set;
    `seed` None keeps the stored order."""
    groups = [
        (number, shard, group, rows)
        for number, split in enumerate(splits)
        for shard, sizes in enumerate(group_rows(split))
        for group, rows in enumerate(sizes)
    ]
    windows: list[Window] = []
    start = 0
    for epoch in range(epochs):
        order = (
            np.arange(len(groups)) if seed is None else np.random.default_rng([seed, epoch]).permutation(len(groups))
        )
        for first in range(0, len(groups), WINDOW_GROUPS):
            chosen = [groups[index] for index in order[first : first + WINDOW_GROUPS]]
            rows = sum(size for *_, size in chosen)
            windows.append(
                Window(
                    start=start,
                    groups=tuple((number, shard, group) for number, shard, group, _ in chosen),
                    group_rows=tuple(size for *_, size in chosen),
                    num_rows=rows,
                    shuffle_seed=None if seed is None else (seed, epoch, first),
                )
            )
            start += rows
    return [window for window in windows if window.start < num_rows]


def group_rows(split: Split) -> tuple[tuple[int, ...], ...]:
    """Rows of each row group of each shard."""
    return _group_rows(split.path, split.shards)


@functools.lru_cache(maxsize=64)
def _group_rows(folder: Place, shards: tuple[Shard, ...]) -> tuple[tuple[int, ...], ...]:
    """Their digests tell splits apart that lay in one folder one after the other.

    A plan asks for them several times: for each rank, for the features, for the datasets.
    """
    return group_rows_of(folder, shards)


def reached_rows(windows: Sequence[Window], num_rows: int) -> dict[tuple[int, int, int], list[int]]:
    """By (split, shard, row group): the rows of that group that positions below `num_rows` reach."""
    reached: dict[tuple[int, int, int], set[int]] = {}
    for window in windows:
        for _, group, row in window.rows(num_rows):
            reached.setdefault(window.groups[group], set()).add(row)
    return {group: sorted(rows) for group, rows in reached.items()}


def stretches_of(windows: Sequence[Window]) -> list[Stretch]:
    """The same windows in the same order, joined while together they hold no more rows than a full one."""
    joined: list[list[Window]] = []
    rows = 0
    for window in windows:
        rows += window.num_rows
        if not joined or rows > WINDOW_GROUPS * ROW_GROUP_ROWS:
            joined.append([])
            rows = window.num_rows
        joined[-1].append(window)
    return [Stretch(windows=tuple(each)) for each in joined]
