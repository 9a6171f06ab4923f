"""Compare finished runs of one stream: a table with mean and spread over seeds, for the terminal or as Markdown.

    littoral report runs/first runs/second ... [--markdown]
    littoral report runs/first --record results        # results/first.json holds what a comparison needs
    littoral report results/*.json
    littoral report results/*.json --baseline sequential-lora    # intervals, tests and verdicts
    littoral report runs/unfinished results/*.json --forecast    # where it will end, by what others did
    littoral report runs/first runs/second --html out    # out/report.html, and its figures as files

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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from components.console.tables import markdown, print_table
from components.console.terminal import Terminal
from components.core.errors import ConfigError
from components.core.location import Place, place
from components.core.visible import print_text
from components.evaluation.replies import WORDS
from components.reporting.decisions import decision_tables
from components.reporting.facts import boundary_notes, chosen_notes, lineage_notes
from components.reporting.groups import Line, grouped, headline_first, named
from components.reporting.summary import below_majority
from components.reporting.tables import general_tables, table_of
from components.runs.results import read_run, write_record
from pipelines.littoral import importing, read_options


@dataclass(frozen=True, kw_only=True)
class Report:
    """Which runs to compare."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of finished runs (STORAGE/RUN-ID) or their records (JSON), all of one stream and backbone; paths, or URIs
    such as s3://bucket/runs/first or 's3://bucket/runs/first-*'."""
    markdown: bool = False
    """Print a Markdown table, for a README or a paper's notes."""
    baseline: str | None = None
    """Compare every other method with this one on the same seeds and test rows: a method's name, the name of its line
    in the table (where options differ), or a run id."""
    forecast: bool = False
    """Where unfinished runs will end, estimated from finished runs of other methods that are given too; for a finished
    run, what would have been said after each of its tasks and what came."""
    picture: Path | None = None
    """With --forecast: also draw how right the forecasts of the finished runs are, as PNG."""
    html: Path | None = None
    """Write report.html into this folder, one page that needs nothing else, and beside it the table as Markdown and
    LaTeX and all figures as CSV. With --baseline, the page holds that comparison too."""
    record: str | None = None
    """Instead of a table: write each run's record, RUN-ID.json, into this folder, a path or a URI. It outlives the
    run's own folder."""
    debug: bool = False
    """A traceback instead of one sentence."""

    def __post_init__(self) -> None:
        given = {
            "--record": self.record is not None,
            "--baseline": self.baseline is not None,
            "--forecast": self.forecast,
            "--html": self.html is not None,
        }
        asked = [option for option, there in given.items() if there]
        if len(asked) > 1 and asked != ["--baseline", "--html"]:
            raise ConfigError(f"{' and '.join(asked)} were given together; ask for one of them at a time.")
        if self.picture is not None and not self.forecast:
            raise ConfigError("--picture draws how right forecasts are; give --forecast as well.")


def main(arguments: Sequence[str]) -> int:
    """Read, group, print."""
    command = read_options(
        Report,
        arguments,
        name="report",
        description=(__doc__ or "").split("\n\n")[0],
        renamed={"--against": "--baseline"},
    )
    named_places = [found for given in command.runs for found in resolved(given)]
    runs = [read_run(found, unfinished=command.forecast) for found in named_places]
    if command.record is not None:
        for run in runs:
            print_text(write_record(run, place(command.record)))
    elif command.html is not None:
        with importing():
            from components.reporting.comparison import against_baseline
            from components.reporting.html import write_html

        for path in write_html(
            runs,
            command.html.expanduser().resolve(),
            overview=table_of(runs),
            generals=general_tables(runs),
            compared=against_baseline(runs, command.baseline) if command.baseline is not None else None,
        ):
            print_text(path)
    elif command.baseline is not None:
        with importing():
            from components.reporting.comparison import against_baseline

        header, lines, verdicts = against_baseline(runs, command.baseline)
        put(header, lines, command.markdown)
        put_notes(verdicts, command.markdown)
    elif command.forecast:
        with importing():
            from components.reporting.forecast import forecast_table, forecasts, write_calibration

        header, lines, notes = forecast_table(forecasts(runs))
        put(header, lines, command.markdown)
        put_notes(notes, command.markdown)
        if command.picture is not None:
            print_text(write_calibration(runs, command.picture.expanduser()))
    else:
        for number, table in enumerate([table_of(runs), *general_tables(runs), *decision_tables(named(grouped(runs)))]):
            if number:
                print_text()
            put(*table, command.markdown)
        put_notes(below_majority(named(grouped(runs))), command.markdown)
    if command.record is None and command.html is None:
        put_notes([*chosen_notes(runs), *lineage_notes(runs), *boundary_notes(runs)], command.markdown)
    if command.record is None and command.html is None and runs[0].config.evaluation.split == "validation":
        put_notes(["Scored on validation rows, which were cut from the training rows."], command.markdown)
    if command.record is None and command.html is None and runs[0].config.evaluation.replies != "generated":
        put_notes([f"Replies are {WORDS[runs[0].config.evaluation.replies]}."], command.markdown)
    return 0


def resolved(given: str) -> list[Place]:
    """What names a run, with the links of a path followed; all that a URI with a pattern names, as a shell has it."""
    found = place(given)
    if isinstance(found, Path):
        return [found.resolve()]
    if not {*"*["} & {*found.name}:
        return [found]
    matching = [each for each in found.parent.glob(found.name) if found.name[0] == "." or each.name[0] != "."]
    if not matching:
        raise ConfigError(f"nothing in {found.parent} is called {found.name}; give a run, or a pattern of some.")
    return [*matching]


def put_notes(sentences: Sequence[str], as_markdown: bool) -> None:
    """Sentences below a table, as a Markdown list or one a line; a terminal wraps them at words."""
    if not sentences:
        return
    if as_markdown:
        print_text("\n".join(["", *(f"- {sentence}" for sentence in sentences)]))
        return
    console = Terminal(highlight=False)
    for sentence in sentences:
        console.print(Text(sentence), soft_wrap=not console.is_terminal)


def put(header: Line, lines: Sequence[Line], as_markdown: bool) -> None:
    """The table, as Markdown or drawn on the terminal."""
    if as_markdown:
        print_text("\n".join(markdown(header, lines)))
        return
    print_table(*headline_first(header, lines))
