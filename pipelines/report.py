"""Compare finished runs of one stream: a table with mean and spread over seeds, for the terminal or as Markdown.

    python pipelines/report.py runs/first runs/second ... [--markdown]
    python pipelines/report.py runs/first --record results        # results/first.json holds what a comparison needs
    python pipelines/report.py results/*.json

Runs that differ only in their seed are one row. A cell reads *right after the task was learned -> at the end*.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pipelines.command import guarded, quiet_environment

quiet_environment()

import numpy as np  # noqa: E402
import tyro  # noqa: E402  (the environment comes before heavy imports)
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from components.data.rows import Split  # noqa: E402
from components.data.streams import open_stream  # noqa: E402
from components.errors import ConfigError  # noqa: E402
from components.evaluation.decomposition import split_if_known  # noqa: E402
from components.evaluation.matrix import ScoreMatrix  # noqa: E402
from components.evaluation.scorers import score  # noqa: E402
from components.evaluation.spread import Spread  # noqa: E402
from components.recorded import FinishedRun, read_run, write_record  # noqa: E402
from components.training.config import flatten  # noqa: E402

CONTROL = ["-"] * 6  # columns that a control has no figures for
SPLIT = {"routing error": "forgetting_routing_error", "weight drift": "forgetting_weight_drift"}  # columns
FREQUENT = 50  # training answers tried as a constant reply
# Settings that say where, how often and with which seed, not what was learned.
NOT_COMPARED = ("run_id", "storage", "seed", "cluster", "tracking", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Which runs to compare."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of finished runs (STORAGE/RUN-ID) or their records (JSON), all of one stream and backbone."""
    markdown: bool = False
    """Print a Markdown table, for a README or a paper's notes."""
    record: Path | None = None
    """Instead of a table: write each run's record, RUN-ID.json, into this folder. It outlives the run's own folder."""
    debug: bool = False
    """A traceback instead of one sentence."""


Line = list[str]


def main() -> int:
    """Read, group, print."""
    command = tyro.cli(Report, prog="report.py", description=(__doc__ or "").split("\n\n")[0])
    runs = [read_run(path.expanduser().resolve()) for path in command.runs]
    if command.record is not None:
        for run in runs:
            print(write_record(run, command.record.expanduser()))
    elif command.markdown:
        print("\n".join(markdown(*table_of(runs))))
    else:
        show(*table_of(runs))
    return 0


def table_of(runs: Sequence[FinishedRun]) -> tuple[Line, list[Line]]:
    """Header and lines; raises `ConfigError` for runs that cannot be compared."""
    require_comparable(runs)
    tasks = runs[0].matrix.tasks
    header = ["method", *tasks, "final average", "forgetting", *SPLIT, "trainable", "training", "seeds"]
    lines = [*control_lines(runs), *(line for group in grouped(runs) for line in group_lines(group))]
    return header, lines


def show(header: Line, lines: Sequence[Line]) -> None:
    """The table on the terminal."""
    table = Table(*header, header_style="bold")
    for line in lines:
        table.add_row(*line)
    Console().print(table)


def require_comparable(runs: Sequence[FinishedRun]) -> None:
    """Raise `ConfigError` unless all runs share stream, backbone and training budget."""
    if not runs:
        raise ConfigError("no run was given; name at least one folder, such as runs/first.")
    first = runs[0]
    for run in runs[1:]:
        for what, mine, theirs in (
            ("stream", first.stream_digest[:12], run.stream_digest[:12]),
            ("backbone", first.config.backbone, run.config.backbone),
            ("updates per task", first.config.training.updates_per_task, run.config.training.updates_per_task),
            ("epochs", first.config.training.epochs, run.config.training.epochs),
            ("batch", first.config.training.global_batch_size, run.config.training.global_batch_size),
        ):
            if mine != theirs:
                raise ConfigError(
                    f"{first.path.name} and {run.path.name} differ in {what} ({mine} and {theirs}) and cannot be "
                    "compared; give runs of one stream, backbone and budget."
                )


def grouped(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Runs that differ in their seed only, in the order given; raises `ConfigError` for a seed given twice."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        plain = {name: value for name, value in run.config.to_json().items() if name not in NOT_COMPARED}
        group = groups.setdefault(str(sorted(flatten(plain).items())), [])
        for other in group:
            if other.config.seed == run.config.seed:
                raise ConfigError(f"{other.path.name} and {run.path.name} are the same run with the same seed.")
        group.append(run)
    return list(groups.values())


def group_lines(group: Sequence[FinishedRun]) -> list[Line]:
    """One line of the table; a second one under oracle routing where that changes a score."""
    costs = [run.cost for run in group if run.cost is not None]
    facts = [
        f"{max(cost.trainable_parameters for cost in costs):,}" if costs else "",
        f"{statistics.fmean(cost.train_s for cost in costs) / 60:.1f} min" if costs else "",
        ", ".join(str(run.config.seed) for run in group),
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
    return [str(Spread.of([part[figure] for part in parts])) for figure in SPLIT.values()]


def label(run: FinishedRun) -> str:
    """The method's name and the options that differ from its defaults."""
    method = run.config.method
    default = type(method)().options()
    changed = [f"{name} {value}" for name, value in method.options().items() if value != default[name]]
    return f"`{method.name}`" + (f" ({', '.join(changed)})" if changed else "")


def scores(matrices: Sequence[ScoreMatrix]) -> Line:
    """Cells of the tasks, the final average and forgetting."""
    cells: Line = []
    for column in range(len(matrices[0].tasks)):
        own = [matrix.values[column + 1, column] for matrix in matrices]
        final = Spread.of([matrix.values[-1, column] for matrix in matrices])
        known = all(value == value for value in own)  # NaN: not scored right after it was learned
        cells.append(f"{Spread.of(own)} -> {final}" if known and column + 1 < len(matrices[0].tasks) else str(final))
    summaries = [matrix.summary() for matrix in matrices]
    for figure in ("final_average", "forgetting"):
        values = [summary[figure] for summary in summaries if figure in summary]
        cells.append(str(Spread.of(values)) if len(values) == len(matrices) else "-")
    return cells


def control_lines(runs: Sequence[FinishedRun]) -> list[Line]:
    """What a table is read against: the majority answer, and the frozen backbone where a run measured it."""
    stream = open_stream(runs[0].config.stream)
    majority = [majority_score(task.train, task.test) for task in stream.tasks]
    lines = [
        ["majority answer", *(f"{value:.1f}" for value in majority), f"{statistics.fmean(majority):.1f}", *CONTROL]
    ]
    measured = [run.matrix for run in runs if run.matrix.has_zero_shot]
    if measured:
        row = [f"{value:.1f}" for value in measured[0].values[0]]
        lines.append(["zero-shot", *row, f"{measured[0].zero_shot_average():.1f}", *CONTROL])
    return lines


def majority_score(train: Split, test: Split) -> float:
    """0..100: the best test score that one and the same reply reaches, among the most frequent training answers."""
    answers = Counter(row.answers[0] for row in train.rows(with_image=False))
    rows = list(test.rows(with_image=False))
    return 100.0 * max(
        statistics.fmean(score(row.metric, reply, row.answers) for row in rows)
        for reply, _ in answers.most_common(FREQUENT)
    )


def markdown(header: Line, lines: Sequence[Line]) -> Line:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines)]


if __name__ == "__main__":
    sys.exit(guarded(main))
