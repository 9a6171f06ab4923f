"""Compare finished runs of one stream: a table with mean and spread over seeds, for the terminal or as Markdown.

    python pipelines/report.py runs/first runs/second ... [--markdown]
    python pipelines/report.py runs/first --record results        # results/first.json holds what a comparison needs
    python pipelines/report.py results/*.json
    python pipelines/report.py results/*.json --against sequential-lora    # intervals, tests and verdicts in words
    python pipelines/report.py runs/unfinished results/*.json --forecast    # where it will end, by what others did
    python pipelines/report.py runs/first runs/second --html out    # out/report.html, and its figures as files

Runs that differ only in their seed and in the order of their tasks are one row. A cell reads *right after the task was
learned -> at the end*.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("report"))

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.text import Text

from components.console.tables import print_table
from components.core.errors import ConfigError
from components.evaluation.forgetting import split_if_known
from components.evaluation.matrix import ScoreMatrix
from components.reporting.comparison import against
from components.reporting.decisions import decision_tables
from components.reporting.export import markdown
from components.reporting.facts import chosen_notes, known_facts
from components.reporting.forecast import forecast_table, forecasts, write_calibration
from components.reporting.groups import Line, grouped, headline_first, label, named, require_comparable, seeds_of
from components.reporting.html import write_html
from components.reporting.summary import below_majority
from components.runs.results import FinishedRun, read_run, write_record
from components.statistics.mean_std import MeanStd
from pipelines.littoral import read_options

CONTROL = ["-"] * 6  # columns that a control has no figures for
SPLIT = {"routing error": "forgetting_routing_error", "weight drift": "forgetting_weight_drift"}  # columns


@dataclass(frozen=True, kw_only=True)
class Report:
    """Which runs to compare."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of finished runs (STORAGE/RUN-ID) or their records (JSON), all of one stream and backbone."""
    markdown: bool = False
    """Print a Markdown table, for a README or a paper's notes."""
    against: str | None = None
    """Compare every other method with this one on the same seeds and test rows: a method's name, the name of its line
    in the table (where options differ), or a run id."""
    forecast: bool = False
    """Where unfinished runs will end, estimated from finished runs of other methods that are given too; for a finished
    run, what would have been said after each of its tasks and what came."""
    picture: Path | None = None
    """With --forecast: also draw how right the forecasts of the finished runs are, as PNG."""
    html: Path | None = None
    """Write report.html into this folder, one page that needs nothing else, and beside it the table as Markdown and
    LaTeX and all figures as CSV. With --against, the page holds that comparison too."""
    record: Path | None = None
    """Instead of a table: write each run's record, RUN-ID.json, into this folder. It outlives the run's own folder."""
    debug: bool = False
    """A traceback instead of one sentence."""

    def __post_init__(self) -> None:
        given = {
            "--record": self.record is not None,
            "--against": self.against is not None,
            "--forecast": self.forecast,
            "--html": self.html is not None,
        }
        asked = [option for option, there in given.items() if there]
        if len(asked) > 1 and asked != ["--against", "--html"]:
            raise ConfigError(f"{' and '.join(asked)} were given together; ask for one of them at a time.")
        if self.picture is not None and not self.forecast:
            raise ConfigError("--picture draws how right forecasts are; give --forecast as well.")


def main(arguments: Sequence[str]) -> int:
    """Read, group, print."""
    command = read_options(Report, arguments, name="report", description=(__doc__ or "").split("\n\n")[0])
    runs = [read_run(path.expanduser().resolve(), unfinished=command.forecast) for path in command.runs]
    if command.record is not None:
        for run in runs:
            print(write_record(run, command.record.expanduser()))
    elif command.html is not None:
        for path in write_html(
            runs,
            command.html.expanduser().resolve(),
            overview=table_of(runs),
            generals=general_tables(runs),
            compared=against(runs, command.against) if command.against is not None else None,
        ):
            print(path)
    elif command.against is not None:
        header, lines, verdicts = against(runs, command.against)
        put(header, lines, command.markdown)
        put_notes(verdicts, command.markdown)
    elif command.forecast:
        header, lines, notes = forecast_table(forecasts(runs))
        put(header, lines, command.markdown)
        put_notes(notes, command.markdown)
        if command.picture is not None:
            print(write_calibration(runs, command.picture.expanduser()))
    else:
        for number, table in enumerate([table_of(runs), *general_tables(runs), *decision_tables(named(grouped(runs)))]):
            print("\n" * bool(number), end="")
            put(*table, command.markdown)
        put_notes(below_majority(named(grouped(runs))), command.markdown)
    if command.record is None and command.html is None:
        put_notes(chosen_notes(runs), command.markdown)
    if command.record is None and command.html is None and runs[0].config.evaluation.split == "validation":
        put_notes(["Scored on validation rows, which were cut from the training rows."], command.markdown)
    return 0


def table_of(runs: Sequence[FinishedRun]) -> tuple[Line, list[Line]]:
    """Header and lines; raises `ConfigError` for runs that cannot be compared."""
    require_comparable(runs)
    tasks = runs[0].matrix.tasks
    header = ["method", *tasks, "final average", "forgetting", *SPLIT, "trainable", "training", "seeds"]
    lines = [*control_lines(runs), *(line for group in grouped(runs) for line in group_lines(group))]
    return header, lines


def general_tables(runs: Sequence[FinishedRun]) -> list[tuple[Line, list[Line]]]:
    """What is left of general ability, one table for all runs that scored suites; none where no run did.

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


def put_notes(sentences: Sequence[str], as_markdown: bool) -> None:
    """Sentences below a table, as a Markdown list or one a line; a terminal wraps them at words."""
    if not sentences:
        return
    if as_markdown:
        print("\n".join(["", *(f"- {sentence}" for sentence in sentences)]))
        return
    console = Console(highlight=False)
    for sentence in sentences:
        console.print(Text(sentence), soft_wrap=not console.is_terminal)


def put(header: Line, lines: Sequence[Line], as_markdown: bool) -> None:
    """The table, as Markdown or drawn on the terminal."""
    if as_markdown:
        print("\n".join(markdown(header, lines)))
        return
    print_table(*headline_first(header, lines))


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
        own = [values[column + 1, column] for values, column in places]
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
    """What a table is read against: the majority answer where it is known, and the frozen backbone where measured."""
    tasks, facts, lines = runs[0].matrix.tasks, known_facts(runs), list[Line]()
    if facts:
        majority = [facts[task].majority for task in tasks]
        shown = [*(f"{value:.1f}" for value in majority), f"{statistics.fmean(majority):.1f}"]
        lines.append(["majority answer", *shown, *CONTROL])
    measured = [run.matrix for run in runs if run.matrix.has_zero_shot]
    if measured:
        scored = dict(zip(measured[0].tasks, measured[0].values[0], strict=True))
        row = [f"{scored[task]:.1f}" for task in tasks]
        lines.append(["zero-shot", *row, f"{measured[0].zero_shot_average():.1f}", *CONTROL])
    return lines
