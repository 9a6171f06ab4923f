"""How the tasks of a stream without boundaries are mixed: which training row is learned in which segment. Pure numpy.

With clear boundaries the rows of T tasks lie one task after another, each task over one unit of time. The segments
cut that time into S equal parts. A mixture moves rows to other places and never touches the places: every row has
exactly one, and a segment has as many rows as with clear boundaries. Only a table of weights decides sizes too.

- gaussian: a row's time is moved by width * N(0, 1), and rows take places in the order of their times. So a task fades
  in and out as under the Gaussian schedules of task-free learning (Shanahan et al. 2021, arXiv 2104.13712).
- blurry: this share of each task's rows is drawn, and their places are shuffled over the whole stream, as the blurry
  samples of i-Blurry and Si-Blurry are (Koh et al. 2022, arXiv 2110.10031; Moon et al. 2023, arXiv 2308.09303).
- table: each task's rows are divided among the segments in proportion to its weights, to the row by the largest
  remainders.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.core.errors import ConfigError
from components.core.options import CountOrZero, Json, NonNegative, Share, check_options, from_plain, listed, to_plain

Kind = Literal["gaussian", "blurry", "table"]
Numbers = NDArray[np.int64]
RULES = 1  # how rows are assigned; part of a stream's identity
OWN: dict[str, str] = {"gaussian": "width", "blurry": "share", "table": "weights"}  # what each kind must state
MOST_SEGMENTS = 1000


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The table `[mixture]` of a stream file."""

    kind: Kind
    width: NonNegative = 0.0
    """Of gaussian: the standard deviation of a row's shift in time, in lengths of a task."""
    share: Share = 0.0
    """Of blurry: the share of each task's rows whose places are shuffled over the stream."""
    weights: Mapping[str, tuple[NonNegative, ...]] | None = None
    """Of table: by task, a weight for each segment."""
    segments: Annotated[int, Field(ge=1, le=MOST_SEGMENTS)] | None = None
    """Parts of the stream after each of which the model is scored; None: as many as tasks. A table has its own."""
    seed: CountOrZero = 0
    """Of all draws; the order of a segment's rows has the run's own seed."""

    def __post_init__(self) -> None:
        check_options(self, "mixture")
        for kind, name in OWN.items():
            if kind != self.kind and getattr(self, name):
                raise ConfigError(f"mixture.{name} belongs to kind {kind!r}, and mixture.kind is {self.kind!r}.")
        if self.kind != "table":
            return
        if not self.weights:
            raise ConfigError("mixture.weights is missing; give each task a weight for every segment.")
        lengths = sorted({len(weights) for weights in self.weights.values()})
        if len(lengths) > 1 or not 1 <= lengths[0] <= MOST_SEGMENTS:
            raise ConfigError(
                f"mixture.weights has lists of {', '.join(map(str, lengths))} weights; give every task one weight for "
                f"each segment, {MOST_SEGMENTS} at most."
            )
        if self.segments not in (None, lengths[0]):
            raise ConfigError(f"mixture.segments is {self.segments}, and mixture.weights has {lengths[0]} a task.")
        for task, weights in self.weights.items():
            if not any(weights):
                raise ConfigError(f"mixture.weights of {task} are all 0, so it would never be learned.")

    @classmethod
    def read(cls, table: object, where: str) -> Mixture:
        """From a parsed file; raises `ConfigError` that begins with `where`."""
        if not isinstance(table, dict):
            raise ConfigError(f"{where} must write its mixture as a table [mixture].")
        for key in table:
            if key not in cls.__dataclass_fields__:
                allowed = listed(str(key), cls.__dataclass_fields__)
                raise ConfigError(f"{where} has the unknown field mixture.{key!s:.80}; allowed are {allowed}")
        kind = table.get("kind")
        if isinstance(kind, str) and (own := OWN.get(kind, "kind")) not in table:
            raise ConfigError(f"{where} has a mixture of kind {kind!r} without its field {own!r}.")
        try:
            return from_plain(cls, cast("Json", table), "mixture")
        except (ConfigError, ValueError, TypeError) as error:
            raise ConfigError(f"{where}: {error}") from error

    def to_json(self) -> dict[str, Json]:
        """As a prepared stream and a score matrix keep it."""
        return cast("dict[str, Json]", to_plain(self))

    def num_segments(self, num_tasks: int) -> int:
        """Of a stream of so many tasks."""
        if self.weights is not None:
            return len(next(iter(self.weights.values())))
        return self.segments or num_tasks

    def segment_names(self, num_tasks: int) -> list[str]:
        """`segment-1`, ...: they tell a method nothing of tasks."""
        return [f"segment-{number}" for number in range(1, self.num_segments(num_tasks) + 1)]

    def identity(self, num_tasks: int) -> str:
        """The mixture's part of a stream's digest."""
        content = self.to_json() | {"segments": self.num_segments(num_tasks)}
        return f"mixture {RULES} {json.dumps(content, sort_keys=True)}"

    def described(self, num_tasks: int) -> str:
        """`gaussian, width 0.5 tasks, 8 segments, seed 0`."""
        own = {"gaussian": f", width {self.width:g} tasks", "blurry": f", share {self.share:g}", "table": ""}
        return f"{self.kind}{own[self.kind]}, {self.num_segments(num_tasks)} segments, seed {self.seed}"

    def check_tasks(self, tasks: Iterable[str]) -> None:
        """Raise `ConfigError` where a table does not weigh just these tasks."""
        names = set(tasks)
        if self.weights is not None and set(self.weights) != names:
            raise ConfigError(
                f"mixture.weights names the tasks {', '.join(sorted(self.weights))}, and the stream has "
                f"{', '.join(sorted(names))}; weigh each of these, and no other."
            )

    def assigned(self, rows: Mapping[str, int]) -> dict[str, Numbers]:
        """By task, the segment (from 0) of each of its training rows. `rows`: their number by task, in stream order.

        Raises `ConfigError` as `check_tasks`, and for an empty segment.
        """
        self.check_tasks(rows)
        parts = self._by_weight(rows) if self.kind == "table" else self._by_time(rows)
        sizes = np.bincount(np.concatenate(parts), minlength=self.num_segments(len(rows)))
        if not sizes.all():
            raise ConfigError(
                f"segment {int(sizes.argmin()) + 1} of {len(sizes)} would have no training row; use fewer segments, or "
                "other weights."
            )
        return dict(zip(rows, parts, strict=True))

    def _by_time(self, rows: Mapping[str, int]) -> list[Numbers]:
        tasks, counts = len(rows), list(rows.values())
        drawn = [np.random.default_rng([self.seed, task]) for task in range(tasks)]
        # Rows of a file may be sorted: which of them come early within their task is drawn, too.
        own = [random.permutation(count) for random, count in zip(drawn, counts, strict=True)]
        times = [task + (place + 0.5) / count for task, (place, count) in enumerate(zip(own, counts, strict=True))]
        if self.kind == "gaussian":
            shifts = (self.width * random.standard_normal(count) for random, count in zip(drawn, counts, strict=True))
            times = [time + shift for time, shift in zip(times, shifts, strict=True)]
        place = np.empty(sum(counts), dtype=np.int64)  # of each row in the whole stream
        place[np.argsort(np.concatenate(times), kind="stable")] = np.arange(len(place))
        if self.kind == "blurry":
            leaks = np.concatenate(
                [
                    first + random.permutation(count)[: round(self.share * count)]
                    for random, count, first in zip(drawn, counts, np.cumsum([0, *counts]), strict=False)
                ]
            )
            place[leaks] = np.random.default_rng([self.seed, tasks]).permutation(place[leaks])
        # In whole numbers, so that no rounding decides on which side of a cut a place lies.
        segments = np.concatenate(
            [
                (2 * task * count + 2 * np.arange(count) + 1) * self.num_segments(tasks) // (2 * count * tasks)
                for task, count in enumerate(counts)
            ]
        )
        return np.split(segments[place], np.cumsum(counts)[:-1])

    def _by_weight(self, rows: Mapping[str, int]) -> list[Numbers]:
        weights, parts = self.weights or {}, list[Numbers]()
        for task, (name, count) in enumerate(rows.items()):
            sizes = divided(count, weights[name])
            order = np.random.default_rng([self.seed, task]).permutation(count)
            parts.append(np.repeat(np.arange(len(sizes)), sizes)[order])
        return parts


def divided(count: int, weights: Sequence[float]) -> list[int]:
    """`count` divided in proportion to the weights, the remainder among the largest fractions, the first ones first."""
    exact = np.array(weights) / sum(weights) * count
    sizes = np.floor(exact).astype(np.int64)
    largest = np.argsort(-(exact - sizes), kind="stable")[: count - int(sizes.sum())]
    sizes[largest] += 1
    return sizes.tolist()
