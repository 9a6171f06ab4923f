"""Raw data -> Parquet splits with checksums, and a report of everything that is wrong with it.

    python pipelines/prepare.py my-stream.toml --out prepared/my-stream
    python pipelines/prepare.py mini-coast-domain --size small --out prepared/domain

The stream file names, per [[task]], LLaVA-format `train` and `test` files (a JSON list or JSONL), an `images` folder,
the `metric` and `max_new_tokens`. Learn the result with: python pipelines/coast.py --stream.name prepared/my-stream
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from rich.console import Console
from rich.table import Table

from components.data.importing import import_stream, read_stream_file
from components.data.reports import ImportReport, refused_report_path
from components.data.streams import NAMED_STREAMS, StreamConfig, listed, write_generated_stream
from components.data.tasks import TaskStream
from components.errors import ConfigError, LittoralError

_SHOWN = 40  # problems printed; report.json lists more


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """What to prepare and where to."""

    stream: Annotated[str, tyro.conf.Positional]
    """A stream file (TOML), or a named stream: mini-coast-domain, mini-coast-capability,
    mini-coast-capability-table-order, mini-coast-dataset, mini-coin, mini-coin-alphabetical, mini-coin-reversed."""
    out: Path
    """Folder to write; replaced only when it holds a prepared stream."""
    max_broken: float = 0.0
    """Share of broken rows a file may have; they are left out. More, and nothing is written."""
    size: str = "mini"
    """Of a generated stream: nano, mini or small."""
    data_seed: int = 0
    """Of a generated stream."""
    debug: bool = False
    """A traceback instead of one sentence."""


def main(command: Prepare, console: Console) -> int:
    """Prepare and report; returns the exit code."""
    if command.stream in NAMED_STREAMS:
        config = StreamConfig(name=command.stream, size=command.size, data_seed=command.data_seed)
        _show_stream(write_generated_stream(config, command.out), console)
    else:
        path = Path(command.stream).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"{command.stream!r} is neither a stream file nor a named stream; "
                f"the names are {listed(command.stream, NAMED_STREAMS)}"
            )
        report = import_stream(read_stream_file(path), command.out, max_broken=command.max_broken)
        _show_report(report, console)
        if report.refused is not None:
            print(
                f"error: {report.refused}. Nothing was written but {refused_report_path(command.out)}.", file=sys.stderr
            )
            return 1
    hint = f"Prepared in {command.out}; learn it with: python pipelines/coast.py --stream.name {command.out}"
    console.print(hint, soft_wrap=True, markup=False, highlight=False)
    return 0


def _show_stream(stream: TaskStream, console: Console) -> None:
    table = Table(title=stream.name)
    for name in ("task", "split", "rows", "majority answer", "share"):
        table.add_column(name, justify="right" if name in ("rows", "share") else "left")
    for task in stream.tasks:
        for split in (task.train, task.test):
            card = split.card
            share = f"{float(str(card['majority_share'])):.1%}"
            table.add_row(task.name, split.split, str(split.num_rows), str(card["majority_answer"]), share)
    console.print(table)


def _show_report(report: ImportReport, console: Console) -> None:
    table = Table(title=f"Import of {report.stream}")
    for name in ("task", "split", "file", "rows", "kept", "with image", "missing image", "broken image", "other"):
        table.add_column(name, justify="left" if name in ("task", "split", "file") else "right")
    for file in report.files:
        missing, broken = file.counts["missing image"], file.counts["broken image"]
        other = sum(file.counts.values()) - missing - broken
        numbers = (file.rows, file.kept, file.with_image, missing, broken, other)
        table.add_row(file.task, file.split, Path(file.file).name, *map(str, numbers))
    console.print(table)
    problems = report.problems
    for problem in problems[:_SHOWN]:
        console.print(f"  {problem}", markup=False, highlight=False, soft_wrap=True)
    if len(problems) > _SHOWN:
        console.print(f"  and {len(problems) - _SHOWN} more in the report")


if __name__ == "__main__":
    arguments = tyro.cli(Prepare, prog="prepare.py", description=__doc__)
    try:
        sys.exit(main(arguments, Console()))
    except LittoralError as error:
        if arguments.debug:
            raise
        sys.exit(f"error: {error}")
