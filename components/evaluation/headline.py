"""A finished stream in one sentence: what was kept, what was learned best, how it compares with a constant reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from components.evaluation.majority import majority_average
from components.evaluation.matrix import MatrixError, ScoreMatrix

SAME = 0.05  # points: figures that print alike
NAMED = 3  # tasks at most that a sentence lists


def headline(matrix: ScoreMatrix, majority: Mapping[str, float] | None = None) -> str:
    """Of the learned tasks, after the last one; "" before the first is learned or where the last row has gaps. Without
    boundaries of all tasks, after the last segment.

    `majority`: what the majority answer scores on each task, where it is known. If the average does not beat it, the
    sentence begins with that and calls no task the best.
    """
    tasks, known = matrix.counted, majority or {}
    if not tasks or np.isnan(matrix.values[-1, : len(tasks)]).any():
        return ""
    final = dict(zip(tasks, matrix.values[-1, : len(tasks)].tolist(), strict=True))
    average, constant = matrix.final_average(), majority_average(known, tasks)
    beaten = constant is not None and average <= constant + SAME
    parts: list[str] = []
    if constant is not None and beaten:
        how = "below" if average < constant - SAME else "no better than"
        parts.append(f"{how} the majority answer on average ({average:.1f} against {constant:.1f})")
    parts += _kept(matrix, known, praise=not beaten)
    learned = [task for task in tasks if final[task] > known.get(task, 0.0) + SAME]
    if learned and not beaten:
        top = max(final[task] for task in learned)
        best = [task for task in learned if final[task] > top - SAME]
        parts.append(f"best {_listed(best)} ({top:.1f}{' each' if len(best) > 1 else ''})")
    if constant is not None:
        missed = [task for task in tasks if task not in learned]
        named = f" (not {_listed(missed)})" if 0 < len(missed) <= NAMED and learned else ""
        parts.append(f"{len(learned)} of {len(tasks)} tasks above the majority answer{named}")
    sentence = "; ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}."


def _kept(matrix: ScoreMatrix, majority: Mapping[str, float], *, praise: bool) -> list[str]:
    """How the tasks fared that can have been forgotten; [] where that was not measured."""
    try:
        average = matrix.forgetting()
    except MatrixError:
        return []
    earlier = matrix.earlier
    best = {task: float(matrix.values[matrix.since(at) : -1, at].max()) for at, task in enumerate(earlier)}
    lost = {task: best[task] - float(matrix.values[-1, at]) for at, task in enumerate(earlier)}
    if majority and all(best[task] <= majority.get(task, 0.0) + SAME for task in earlier):
        return ["nothing was learned that could be forgotten"]
    most = max(lost, key=lambda task: lost[task])
    if lost[most] < SAME:
        return ["kept all it learned" if praise else "nothing was forgotten"]
    where = f"most on {most} ({best[most]:.1f} to {best[most] - lost[most]:.1f})"
    if average < SAME:
        return [f"gained as much on {'earlier' if matrix.points is None else 'some'} tasks as it lost, {where}"]
    whose = "the earlier tasks" if matrix.points is None else "the tasks' best scores"
    return [f"lost {average:.1f} points of {whose} on average, {where}"]


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
