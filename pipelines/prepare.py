"""Raw data -> Parquet splits with checksums, and a report of everything that is wrong with it.

    python pipelines/prepare.py my-stream.toml --out prepared/my-stream
    python pipelines/prepare.py coast-domain --root DOWNLOADS --out prepared/coast-domain
    python pipelines/prepare.py mini-coast-domain --size small --out prepared/domain

A published stream is read from its releases as they were downloaded, below --root; components/data/benchmarks/ says of
each where it is found, what it must look like and what to beware of. A stream file names, per [[task]],
`train` and `test` files (a JSON list or JSONL, in a layout of components/data/layouts.py), an `images` folder, the
`metric` and `max_new_tokens`.
Learn the result with: python pipelines/coast.py --stream.name prepared/my-stream
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from rich.console import Console
from rich.table import Table

from components.data.benchmarks.catalogue import BENCHMARKS
from components.data.benchmarks.preparing import prepare_benchmark
from components.data.importing import import_stream, read_stream_file
from components.data.overlaps import Overlap, overlaps_of
from components.data.prepared import open_prepared
from components.data.reports import ImportReport, refused_report_path
from components.data.streams import NAMED_STREAMS, StreamConfig, listed, write_generated_stream
from components.data.tasks import TaskStream
from components.errors import ConfigError, LittoralError

_SHOWN = 40  # problems printed; report.json lists more


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """What to prepare and where to."""

    stream: Annotated[str, tyro.conf.Positional]
    """A stream file (TOML); a published stream: coast-domain, coast-capability, coast-capability-table-order,
    coast-dataset, coin (and coin[-diverse|-10type][-alphabetical|-reversed][-full]), ucit, mllm-dcl, mllm-acl; or a
    generated one: mini-coast-domain, mini-coast-capability, mini-coast-capability-table-order, mini-coast-dataset,
    mini-coin, mini-coin-alphabetical, mini-coin-reversed."""
    out: Path
    """Folder to write; replaced only when it holds a prepared stream."""
    root: Path | None = None
    """Of a published stream: the folder that holds the downloaded releases."""
    strict: bool = False
    """Of a published stream: write nothing when anything at all is wrong."""
    workers: int = 4
    """Of a published stream: threads that open pictures."""
    overlaps: bool = True
    """Look for pictures and questions that splits share, after writing; reads every picture once more."""
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
        report = _import(command, console)
        _show_report(report, console)
        if report.refused is not None:
            where = refused_report_path(command.out)
            print(f"error: {report.refused}. {command.out} was not written; the report is {where}.", file=sys.stderr)
            return 1
    if command.overlaps:
        _show_overlaps(overlaps_of(open_prepared(command.out)), command.out, console)
    hint = f"Prepared in {command.out}; learn it with: python pipelines/coast.py --stream.name {command.out}"
    console.print(hint, soft_wrap=True, markup=False, highlight=False)
    return 0


def _import(command: Prepare, console: Console) -> ImportReport:
    """A published stream or a user's own, written to `command.out`."""
    if command.stream in BENCHMARKS:
        stream = BENCHMARKS[command.stream]
        if command.root is None:
            raise ConfigError(f"{stream.name} is read from downloaded releases; give their folder with --root.")
        console.print(f"{stream.name}: {', '.join(stream.task_names)}", soft_wrap=True, highlight=False)
        console.print(f"specification {stream.digest}", soft_wrap=True, highlight=False)
        return prepare_benchmark(stream, command.root, command.out, strict=command.strict, workers=command.workers)
    path = Path(command.stream).expanduser()
    if not path.is_file():
        allowed = listed(command.stream, [*BENCHMARKS, *NAMED_STREAMS])
        raise ConfigError(f"{command.stream!r} is neither a stream file nor a named stream; the names are {allowed}")
    return import_stream(read_stream_file(path), command.out, max_broken=command.max_broken)


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
    """One row a split: its counts, and a column for every kind of problem that occurred."""
    left_out = list(dict.fromkeys(kind for file in report.files for kind in file.counts))
    notes = list(dict.fromkeys(kind for file in report.files for kind in file.notes))
    table = Table(title=report.stream)
    for name in ("task", "split"):
        table.add_column(name)
    for name in ("rows", "published", "taken", "kept", "with image", "ids renewed", *left_out, *notes):
        table.add_column(name, justify="right")
    for file in report.files:
        taken = file.rows if file.chosen is None else file.chosen
        published = " or ".join(map(str, file.published)) or "-"
        numbers = [file.rows, published, taken, file.kept, file.with_image, file.repeated_ids]
        numbers += [file.counts[kind] for kind in left_out] + [file.notes[kind] for kind in notes]
        table.add_row(file.task, file.split, *map(str, numbers))
    console.print(table)
    problems = report.problems
    for problem in problems[:_SHOWN]:
        console.print(f"  {problem}", markup=False, highlight=False, soft_wrap=True)
    if len(problems) > _SHOWN:
        console.print(f"  and {len(problems) - _SHOWN} more in the report")


def _show_overlaps(found: list[Overlap], out: Path, console: Console) -> None:
    """A table of what splits share, and all of it as overlaps.json in the prepared folder."""
    content = json.dumps([asdict(overlap) for overlap in found], indent=2, ensure_ascii=False)
    (out / "overlaps.json").write_text(content + "\n", encoding="utf-8")
    if not found:
        console.print("No pictures look alike and no questions are equal between splits.")
        return
    table = Table(title="Shared between splits")
    for name in ("", "and", "look-alike pictures", "equal questions", "such as"):
        table.add_column(name, justify="right" if name.endswith(("pictures", "questions")) else "left")
    for overlap in found:
        such_as = ", ".join(f"{first} = {second}" for first, second in overlap.examples[:1])
        table.add_row(overlap.first, overlap.second, str(overlap.pictures), str(overlap.questions), such_as)
    console.print(table)


if __name__ == "__main__":
    arguments = tyro.cli(Prepare, prog="prepare.py", description=__doc__)
    try:
        sys.exit(main(arguments, Console()))
    except LittoralError as error:
        if arguments.debug:
            raise
        sys.exit(f"error: {error}")
