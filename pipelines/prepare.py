"""Raw data -> Parquet splits with checksums, and a report of all that is wrong with it: printed, JSON and a page.

    python pipelines/prepare.py my-stream.toml --out prepared/my-stream
    python pipelines/prepare.py coast-domain --root DOWNLOADS --out prepared/coast-domain
    python pipelines/prepare.py mini-coast-domain --size small --out prepared/domain
    python pipelines/prepare.py pope --root DOWNLOADS --out prepared/pope

A published stream is read from its releases as they were downloaded, below --root; components/data/benchmarks/ says of
each where it is found, what it must look like and what to beware of. A stream file names, per [[task]],
`train` and `test` data (paths or URIs, in a format of components/data/sources.py and a layout of
components/data/layouts.py), an `images` folder where the pictures lie apart, the `metric` and `max_new_tokens`.
The report lies in the prepared folder, report.json and report.html, or beside it when nothing was written.
Learn the result with: python pipelines/coast.py --stream.name prepared/my-stream
A general suite (components/data/suites/) is scored beside a stream: python pipelines/coast.py --evaluation.suites DIR
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
from components.data.in_order import InOrder, Threads
from components.data.overlaps import Overlap, overlaps_of
from components.data.preparation import ALLOWED_LOSS
from components.data.prepared import open_prepared
from components.data.report_page import pairs_of, pictures_of, write_page
from components.data.reports import ImportReport, refused_report_path
from components.data.streams import NAMED_STREAMS, StreamConfig, listed, write_generated_stream
from components.data.suites.catalogue import SUITES
from components.data.suites.preparing import prepare_suite
from components.data.survey import survey
from components.data.tasks import TaskStream
from components.errors import ConfigError, LittoralError
from components.shell import pipeline_command

_SHOWN = 40  # problems printed; report.json lists more


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """What to prepare and where to."""

    stream: Annotated[str, tyro.conf.Positional]
    """A stream file (TOML); a published stream: coast-domain, coast-capability, coast-capability-table-order,
    coast-dataset, coin (and coin[-diverse|-10type][-alphabetical|-reversed][-full]), ucit, mllm-dcl, mllm-acl, trace,
    vqacl; or a generated one: mini-coast-domain, mini-coast-capability, mini-coast-capability-table-order,
    mini-coast-pictures, mini-coast-dataset, mini-coin, mini-coin-alphabetical, mini-coin-reversed; or a published
    general suite: pope, mme, mme-release, mmbench, seed-bench, seed-bench-2-plus, mmmu, mathvista, hallusion-bench,
    scienceqa-test, ocr-vqa-test."""
    out: Path
    """Folder to write; replaced only when it holds a prepared stream."""
    root: Path | None = None
    """Of a published stream or suite: the folder that holds the downloaded releases."""
    tasks: tuple[str, ...] = ()
    """Of a published stream: only these tasks, such as `chartqa iconqa`; the others need not be on disk. The result is
    a stream of another name and digest."""
    strict: bool = False
    """Of a published stream or suite: write nothing when anything at all is wrong."""
    workers: int = 4
    """Threads that open pictures; not of a generated stream."""
    ray: bool = False
    """Open pictures by Ray Data's tasks instead; every node must find them: a shared folder, or URIs."""
    address: str | None = None
    """With --ray: the cluster to join; default: RAY_ADDRESS, or a cluster of this machine."""
    overlaps: bool = True
    """Look for pictures and questions that splits share, after writing; decodes every picture once more."""
    max_broken: float | None = None
    """Share of broken rows, 0 to below 1, that a file may have; they are left out. More, and nothing is written.
    Default: 0 for your own stream, 0.01 for a published stream or suite."""
    size: str = "mini"
    """Of a generated stream: nano, mini or small."""
    data_seed: int = 0
    """Of a generated stream."""
    debug: bool = False
    """A traceback instead of one sentence."""


def main(command: Prepare, console: Console) -> int:
    """Prepare and report; returns the exit code."""
    if command.tasks and command.stream not in BENCHMARKS:
        raise ConfigError(
            f"--tasks takes part of a published stream, which {command.stream} is not; prepare it whole and learn "
            "some of its tasks with --stream.order."
        )
    if command.stream in NAMED_STREAMS:
        config = StreamConfig(name=command.stream, size=command.size, data_seed=command.data_seed)
        stream = write_generated_stream(config, command.out)
        _show_stream(stream, console)
        if command.overlaps:
            _show_overlaps(overlaps_of(stream), command.out, console)
    else:
        with _openers(command) as in_order:
            report = _import(command, console, in_order)
        _show_report(report, console)
        if report.refused is not None:
            where = refused_report_path(command.out)
            write_page(where.with_suffix(".html"), report, None, None)
            print(f"error: {report.refused}. {command.out} was not written; the report is {where}.", file=sys.stderr)
            return 1
        if command.stream in SUITES:
            _show_next_step("score", "--evaluation.suites", command.out, console)
            return 0
        _look_closer(report, command, console)
    _show_next_step("learn", "--stream.name", command.out, console)
    return 0


def _show_next_step(verb: str, option: str, out: Path, console: Console) -> None:
    """The command to go on with: for the interpreter that runs now, and as short as an activated environment allows."""
    here = pipeline_command("coast.py", option, out)
    console.print(f"Prepared in {out}; {verb} it with: {here}", soft_wrap=True, markup=False, highlight=False)
    name, _, arguments = here.partition(" ")
    if name != "python":
        hint = f"or, in an activated environment: python {arguments}"
        console.print(hint, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def _openers(command: Prepare) -> Iterator[InOrder]:
    """Threads of this process, or the nodes of a Ray cluster."""
    if command.address is not None and not command.ray:
        raise ConfigError("--address names a Ray cluster; give --ray with it.")
    if not command.ray:
        yield Threads(workers=command.workers)
        return
    from components.data.on_ray import ray_cluster  # importing Ray takes seconds

    with ray_cluster(command.address) as in_order:
        yield in_order


def _import(command: Prepare, console: Console, in_order: InOrder) -> ImportReport:
    """A published stream or suite or a user's own stream, written to `command.out`; `in_order` opens its pictures."""
    if command.stream in SUITES:
        if command.root is None:
            raise ConfigError(f"{command.stream} is read from a downloaded release; give its folder with --root.")
        return prepare_suite(
            command.stream,
            command.root,
            command.out,
            max_broken=ALLOWED_LOSS if command.max_broken is None else command.max_broken,
            strict=command.strict,
        )
    if command.stream in BENCHMARKS:
        stream = BENCHMARKS[command.stream]
        if command.tasks:
            stream = stream.part(command.tasks)
        if command.root is None:
            raise ConfigError(f"{stream.name} is read from downloaded releases; give their folder with --root.")
        console.print(f"{stream.name}: {', '.join(stream.task_names)}", soft_wrap=True, highlight=False)
        console.print(f"specification {stream.digest}", soft_wrap=True, highlight=False)
        return prepare_benchmark(
            stream,
            command.root,
            command.out,
            max_broken=ALLOWED_LOSS if command.max_broken is None else command.max_broken,
            strict=command.strict,
            in_order=in_order,
        )
    path = Path(command.stream).expanduser()
    if not path.is_file():
        allowed = listed(command.stream, [*BENCHMARKS, *NAMED_STREAMS, *SUITES])
        raise ConfigError(f"{command.stream!r} is neither a stream file nor a named stream; the names are {allowed}")
    return import_stream(read_stream_file(path), command.out, max_broken=command.max_broken or 0.0, in_order=in_order)


def _look_closer(report: ImportReport, command: Prepare, console: Console) -> None:
    """What only the written rows tell, shown here and added to the report: overlaps, sizes, lengths and samples."""
    stream = open_prepared(command.out)
    found = overlaps_of(stream, in_order=Threads(workers=command.workers)) if command.overlaps else None
    if found is not None:
        _show_overlaps(found, command.out, console)
    seen = survey(stream, pictures_of(pairs_of(found or ())))
    plain = [{**asdict(split), "samples": [sample.sample_id for sample in split.samples]} for split in seen.splits]
    shared = None if found is None else [asdict(overlap) for overlap in found]
    report.write(command.out / "report.json", {"overlaps": shared, "splits": plain})
    write_page(command.out / "report.html", report, found, seen)
    console.print(f"The report as a page: {command.out / 'report.html'}", soft_wrap=True, markup=False, highlight=False)


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
    """The verdict, one row a split, one row a kind of fault, the first problems, and the licences."""
    console.print(report.verdict, soft_wrap=True, markup=False, highlight=False)
    table = Table(title=report.stream)
    for name in ("task", "split"):
        table.add_column(name)
    for name in ("rows", "published", "taken", "kept", "with image", "ids renewed", "problems"):
        table.add_column(name, justify="right")
    for file in report.files:
        published = " or ".join(map(str, file.published)) or "-"
        numbers = [file.rows, published, file.taken, file.kept, file.with_image, file.repeated_ids]
        table.add_row(file.task, file.split, *map(str, numbers), str(file.faults.total()))
    console.print(table)
    if report.faults:
        console.print(_fault_table(report))
    problems = report.problems
    for problem in problems[:_SHOWN]:
        console.print(f"  {problem}", markup=False, highlight=False, soft_wrap=True)
    if len(problems) > _SHOWN:
        console.print(f"  and {len(problems) - _SHOWN} more in the report")
    for licence in report.licences:
        where = f"; get it: {licence.get}" if licence.get else ""
        line = f"Licence of {', '.join(licence.tasks)}: {licence.licence}{where}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _fault_table(report: ImportReport) -> Table:
    table = Table(title="What was found")
    table.add_column("fault", no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    for name in ("rows are", "where", "what to do"):
        table.add_column(name)
    for fault in report.faults:
        where = ", ".join(f"{name} {count}" for name, count in fault.splits)
        table.add_row(fault.kind, str(fault.count), "left out" if fault.left_out else "kept", where, fault.advice)
    return table


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
