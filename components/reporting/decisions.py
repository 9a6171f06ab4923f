"""The table of what methods decided: each task's group, why, and which parameters answered its rows at the end."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from components.core.options import Json
from components.evaluation.decisions import Served
from components.reporting.groups import Groups, Line
from components.runs.results import FinishedRun
from components.statistics.mean_std import MeanStd


@dataclass(frozen=True, kw_only=True)
class _OfTask:
    """One run's decision about one task, and which parameters answered the task's rows after the last one."""

    decided: dict[str, Json]
    served: Served | None


def decision_tables(groups: Groups) -> list[tuple[Line, list[Line]]]:
    """One table for all runs that decided something, means over seeds; none where no run did.

    `old weight` is the weight of the old tensors in a moving average: its mean, and its range over steps.
    `own group` and `fallback` are percent of the task's test rows after the last task. Empty columns are left out.
    """
    header = ["method: task", *COLUMNS]  # in one cell, since a narrow terminal repeats the first column only
    lines: list[Line] = []
    for name, group in groups.items():
        for task in group[0].matrix.tasks:
            seeds = [_of_task(run, task) for run in group]
            cells = [column(seeds) for column in COLUMNS.values()]
            if any(cells):
                lines.append([f"{name}: {task}", *cells])
    if not lines:
        return []
    kept = [number for number in range(len(header)) if any(line[number] for line in lines)]
    return [([header[number] for number in kept], [[line[number] for number in kept] for line in lines])]


def _of_task(run: FinishedRun, task: str) -> _OfTask:
    row = run.decisions.served.get(run.matrix.after[-1], {})
    return _OfTask(decided=run.decisions.tasks.get(task, {}), served=row.get(task))


def _group(seeds: Sequence[_OfTask]) -> str:
    """`0`, or `0 (reused)`; values that differ between seeds are listed side by side."""
    found = [
        f"{seed.decided['group']}{' (reused)' if seed.decided.get('reused') else ''}"
        for seed in seeds
        if "group" in seed.decided
    ]
    return ", ".join(dict.fromkeys(found))


def _number(key: str, digits: int, factor: float = 1.0) -> Callable[[Sequence[_OfTask]], str]:
    def cell(seeds: Sequence[_OfTask]) -> str:
        values = [seed.decided.get(key) for seed in seeds]
        return _mean([factor * value for value in values if isinstance(value, int | float)], digits)

    return cell


def _share(key: str) -> Callable[[Sequence[_OfTask]], str]:
    def cell(seeds: Sequence[_OfTask]) -> str:
        values = [None if seed.served is None else getattr(seed.served, key) for seed in seeds]
        return _mean([100.0 * value for value in values if value is not None], 1)

    return cell


def _old_weight(seeds: Sequence[_OfTask]) -> str:
    mean, least, most = (
        [value for seed in seeds if isinstance(value := seed.decided.get(f"ema_old_{which}"), int | float)]
        for which in ("mean", "min", "max")
    )
    return f"{_mean(mean, 4)} ({min(least):.4f} to {max(most):.4f})" if mean else ""


def _scalars(seeds: Sequence[_OfTask]) -> str:
    """Every earlier task with its scalar and by how much it changed: `chartqa 0.62 (-0.33)`."""
    tables = [(seed.decided.get("w"), seed.decided.get("w_moved")) for seed in seeds]
    known = [(w, moved) for w, moved in tables if isinstance(w, dict) and isinstance(moved, dict)]
    cells = []
    for task in dict.fromkeys(task for w, _ in known for task in w):
        values, moves = (
            [value for table in tables if isinstance(value := table.get(task), int | float)]
            for tables in ([w for w, _ in known], [moved for _, moved in known])
        )
        cells.append(f"{task} {_mean(values, 3)} ({statistics.fmean(moves):+.3f})")
    return ", ".join(cells)


def _mean(values: Sequence[float], digits: int) -> str:
    """Mean ± deviation over seeds; one value alone; empty for none."""
    return f"{MeanStd.of(values):.{digits}f}" if values else ""


COLUMNS: dict[str, Callable[[Sequence[_OfTask]], str]] = {
    "group": _group,
    "similarity": _number("similarity", 3),
    "EMA steps": _number("ema_steps", 0),
    "own group %": _share("own"),
    "fallback %": _share("fallback"),
    "old weight": _old_weight,
    "EMA fallback %": _number("ema_fallback", 1, 100.0),
    "w (moved)": _scalars,
    "slots used": _number("slots_used", 0),
}
