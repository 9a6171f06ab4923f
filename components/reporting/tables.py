"""The tables of a report: one line a method, its figures as mean and spread over seeds and orders."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from components.evaluation.forgetting import split_if_known
from components.evaluation.matrix import ScoreMatrix
from components.reporting.facts import known_facts
from components.reporting.groups import Line, Table, grouped, label, require_comparable, seeds_of
from components.runs.results import FinishedRun
from components.statistics.mean_std import MeanStd

CONTROL = ["-"] * 6  # columns that a control has no figures for
SPLIT = {"routing error": "forgetting_routing_error", "weight drift": "forgetting_weight_drift"}  # columns


def table_of(runs: Sequence[FinishedRun]) -> Table:
    """Header and lines; raises `ConfigError` for runs that cannot be compared."""
    require_comparable(runs)
    tasks = runs[0].matrix.tasks
    header = ["method", *tasks, "final average", "forgetting", *SPLIT, "trainable", "training", "seeds"]
    lines = [*control_lines(runs), *(line for group in grouped(runs) for line in group_lines(group))]
    return header, lines


def general_tables(runs: Sequence[FinishedRun]) -> list[Table]:
    """How much general ability was retained: one table over all runs that scored suites, or none.

    A cell reads *before the stream -> after it*; the figures are those of components/evaluation/general.py.
    """
    measured = [run for run in runs if run.general.kept()]
    if not measured:
        return []
    suites = list(dict.fromkeys(suite for run in measured for suite in run.general.kept()))
    header = ["method", *suites, "difference", "retained", "with final average", "seeds"]
    return [(header, [general_line(group, suites) for group in grouped(measured)])]


def general_line(group: Sequence[FinishedRun], suites: Sequence[str]) -> Line:
    """Means over seeds; a cell that not every run of the group has stays empty."""
    kept = [run.general.kept() for run in group]
    line = [label(group[0])]
    for suite in suites:
        found = [one[suite] for one in kept if suite in one]
        before, after = [one.before for one in found], [one.after for one in found]
        line.append(f"{MeanStd.of(before)} -> {MeanStd.of(after)}" if len(found) == len(group) else "")
    summaries = [run.general.summary(run.matrix.summary().get("final_average")) for run in group]
    for figure in ("mean_difference", "mean_retained", "hmean"):
        values = [summary[figure] for summary in summaries if figure in summary]
        scale = 100.0 if figure == "mean_retained" else 1.0  # percent, as the rest
        line.append(str(MeanStd.of([scale * value for value in values])) if len(values) == len(group) else "")
    return [*line, seeds_of(group)]


def group_lines(group: Sequence[FinishedRun]) -> list[Line]:
    """One line of the table; a second one under oracle routing where that changes a score."""
    costs = [run.cost for run in group if run.cost is not None]
    facts = [
        f"{max(cost.trainable_parameters for cost in costs):,}" if costs else "unknown",
        f"{statistics.fmean(cost.train_s for cost in costs) / 60:.1f} min" if costs else "unknown",
        seeds_of(group),
    ]
    lines = [[label(group[0]), *scores([run.matrix for run in group]), *split(group), *facts]]
    oracles = [run.oracle for run in group if run.oracle is not None]
    if any(run.oracle is not None and differs(run.matrix, run.oracle) for run in group):
        lines.append([f"{label(group[0])}, oracle routing", *scores(oracles), *["" for _ in (*SPLIT, *facts)]])
    return lines


def differs(matrix: ScoreMatrix, oracle: ScoreMatrix) -> bool:
    """Whether knowing the task changed any score after a learned task."""
    return not np.array_equal(matrix.values[1:], oracle.values[1:], equal_nan=True)


def split(group: Sequence[FinishedRun]) -> Line:
    """Forgetting's parts by routing error and by weight drift; empty where no oracle routing was measured."""
    parts = [split_if_known(run.matrix, {"oracle": run.oracle}) for run in group]
    if not all(parts):
        return ["" for _ in SPLIT]
    return [str(MeanStd.of([part[figure] for part in parts])) for figure in SPLIT.values()]


def scores(matrices: Sequence[ScoreMatrix]) -> Line:
    """Cells of the tasks (in the first one's order), the final average and forgetting."""
    cells: Line = []
    for task in matrices[0].tasks:
        places = [(matrix.values, matrix.tasks.index(task)) for matrix in matrices]
        clear = matrices[0].points is None  # else no score is that of a task just learned
        own = [values[column + 1, column] if clear else np.nan for values, column in places]
        final = MeanStd.of([values[-1, column] for values, column in places])
        known = all(value == value for value in own)  # NaN: not scored right after it was learned
        always_last = all(matrix.tasks[-1] == task for matrix in matrices)
        cells.append(f"{MeanStd.of(own)} -> {final}" if known and not always_last else str(final))
    summaries = [matrix.summary() for matrix in matrices]
    for figure in ("final_average", "forgetting"):
        values = [summary[figure] for summary in summaries if figure in summary]
        cells.append(str(MeanStd.of(values)) if len(values) == len(matrices) else "-")
    return cells


def control_lines(runs: Sequence[FinishedRun]) -> list[Line]:
    """Baselines for the table: the majority answer where it is known, and the frozen backbone where it was measured."""
    tasks, facts, lines = runs[0].matrix.tasks, known_facts(runs), list[Line]()
    if facts:
        majority = [facts[task].majority for task in tasks]
        shown = [*(f"{value:.1f}" for value in majority), f"{statistics.fmean(majority):.1f}"]
        lines.append(["majority answer", *shown, *CONTROL])
    # A run that continues another one took over a row that knows nothing of the tasks that it added.
    measured = [run.matrix for run in runs if "zero_shot_average" in run.matrix.summary()]
    if measured:
        scored = dict(zip(measured[0].tasks, measured[0].values[0], strict=True))
        row = [f"{scored[task]:.1f}" for task in tasks]
        lines.append(["zero-shot", *row, f"{measured[0].zero_shot_average():.1f}", *CONTROL])
    return lines
