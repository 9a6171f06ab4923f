"""Scores over the stream with their intervals: each task's, and the average of the tasks learned so far.

An interval is 95 % over test rows, and over seeds too where a line has several (components/statistics/intervals.py).
A point without the scores of its single test rows has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from components.evaluation.matrix import ScoreMatrix
from components.runs.results import FinishedRun
from components.statistics.contributions import Contributions, Draw, ItemScores
from components.statistics.intervals import Interval, over_both, over_rows

AVERAGE = "average of the tasks learned so far"
AVERAGE_OF_ALL = "average of all tasks"


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A line's score (0..100) after a task; `interval` is None where single rows are not known."""

    line: str
    after: str
    value: float
    interval: Interval | None

    @property
    def text(self) -> str:
        """The value, with the interval where there is one."""
        return f"{self.value:.1f}" if self.interval is None else str(self.interval)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The points of all lines for one task, or for the average (`title`), in the stream's order."""

    title: str
    after: tuple[str, ...]
    points: tuple[CurvePoint, ...]

    def of(self, line: str) -> dict[str, CurvePoint]:
        """One line's points by the task they come after."""
        return {point.after: point for point in self.points if point.line == line}


def curves(groups: Mapping[str, Sequence[FinishedRun]], items: Mapping[str, ItemScores]) -> list[Curves]:
    """The average first, then each task from when it is new (without boundaries from the first point on); `items`
    holds the rows' scores by run id.

    A point is left out where a run of its line lacks the cell, as joint learning does before the end.
    """
    first = next(iter(groups.values()))[0].matrix
    tasks, points = first.tasks, first.points
    if points is None:
        averaged = {AVERAGE: {after: tasks[: at + 1] for at, after in enumerate(tasks)}}
        averaged |= {task: {after: [task] for after in tasks[at:]} for at, task in enumerate(tasks)}
    else:
        averaged = {AVERAGE_OF_ALL: dict.fromkeys(points, tasks)}
        averaged |= {task: {point: [task] for point in points} for task in tasks}
    found: list[Curves] = []
    for title, cells in averaged.items():
        pairs = [(line, after) for line in groups for after in cells]
        made = [_point(line, after, groups[line], items, cells[after], first) for line, after in pairs]
        found.append(Curves(title=title, after=tuple(cells), points=tuple(one for one in made if one is not None)))
    return found


def _point(
    line: str,
    after: str,
    group: Sequence[FinishedRun],
    items: Mapping[str, ItemScores],
    averaged: Sequence[str],
    first: ScoreMatrix,
) -> CurvePoint | None:
    row, columns = first.steps.index(after) + 1, [first.tasks.index(task) for task in averaged]
    if any(run.matrix.num_learned < row for run in group):
        return None
    values = [run.matrix.values[row, columns].mean() for run in group]
    if np.isnan(values).any():
        return None
    rows = [items[str(run.config.run_id)].get(after, {}) for run in group]
    interval = _interval([run.config.seed for run in group], rows, averaged)
    return CurvePoint(line=line, after=after, value=float(np.mean(values)), interval=interval)


def _interval(
    seeds: Sequence[int], rows: Sequence[Mapping[str, Sequence[float]]], averaged: Sequence[str]
) -> Interval | None:
    counts = [{len(one.get(task, ())) for one in rows} for task in averaged]
    if any(len(count) > 1 or min(count) < 2 for count in counts):  # not kept, or too few to be drawn again
        return None
    parts = {task: 100.0 / len(averaged) * np.array([one[task] for one in rows]) for task in averaged}
    scored = Contributions(figure="score", draws=tuple(map(Draw, seeds)), by_task=parts)
    return over_both(scored) if len(seeds) > 1 else over_rows(scored)
