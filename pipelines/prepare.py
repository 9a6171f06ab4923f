"""Convert raw data to Parquet splits, and report everything that is wrong with it.

    littoral prepare my-stream.toml --out prepared/my-stream
    littoral prepare coast-domain --root DOWNLOADS --out prepared/coast-domain
    littoral prepare mini-coast-domain --size small --out prepared/domain
    littoral prepare pope --root DOWNLOADS --out prepared/pope

A stream file (TOML) names, per [[task]], `train` and `test` data (paths or URIs, in a format of
components/data/formats/sources.py and a layout of components/data/formats/layouts.py), an `images` folder where the
pictures are elsewhere, the `metric` and `max_new_tokens`; if wanted `ids`, `orientation` and `licence`, of a task or
above all tasks.

A published stream is read from its releases as they were downloaded, below --root; components/data/benchmarks/ says of
each where it is found, what it must look like and what to beware of. One that loses more than one row in a hundred is
refused. A general suite (components/data/suites/) is prepared the same way and scored beside a stream:
`littoral coast --evaluation.suites DIR`.

The report, report.json and report.html, is in the prepared folder, or beside it if nothing was written. Train on the
result with `littoral coast --stream.name DIR`.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("prepare"))

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from components.console.preparation import say, show_overlaps, show_report, show_table
from components.console.terminal import Terminal
from components.core.errors import ConfigError
from components.core.files import write_text
from components.core.location import Place, place
from components.core.options import Count, listed
from components.core.secrets import without_secrets
from components.core.shell import pipeline_command
from components.data.benchmarks.catalogue import BENCHMARKS
from components.data.benchmarks.preparing import prepare_benchmark
from components.data.formats.parallel_map import OrderedMap, Threads
from components.data.formats.pictures import Orientation
from components.data.generated import GENERATED_STREAMS
from components.data.importing import Ids, import_stream, read_stream_file
from components.data.preparation import ALLOWED_LOSS, sole_preparer
from components.data.prepared import open_prepared
from components.data.quality.overlaps import Shared, overlaps_of
from components.data.quality.report import ImportReport, refused_report_path
from components.data.quality.report_page import pairs_of, pictures_of, write_page
from components.data.quality.report_tables import ReportTable
from components.data.quality.survey import survey
from components.data.rows import Split
from components.data.stream_config import StreamConfig
from components.data.streams import write_generated_stream
from components.data.suite import open_suite
from components.data.suites.catalogue import SUITES
from components.data.suites.preparing import prepare_suite
from components.data.tasks import TaskStream
from components.models.config import BackboneConfig
from pipelines.littoral import read_options

_RELEASED = ("a published stream", "a published suite")
_ONLY_OF = {
    "root": _RELEASED,
    "tasks": ("a published stream",),
    "strict": _RELEASED,
    "max_broken": (*_RELEASED, "a stream file"),
    "ray": ("a published stream", "a stream file"),
    "ids": ("a stream file",),
    "orientation": (*_RELEASED, "a stream file"),
    "backbone": (*_RELEASED, "a stream file"),
    "max_length": (*_RELEASED, "a stream file"),
    "size": ("a generated stream",),
    "data_seed": ("a generated stream",),
}  # options that mean nothing for other streams
_PIPED = 160  # columns of a table in a file or a pipe


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
    out: str
    """Folder to write, a path or a URI such as s3://bucket/data; replaced only when it holds a prepared stream."""
    root: Path | None = None
    """Of a published stream or suite: the folder that holds the downloaded releases."""
    tasks: tuple[str, ...] = ()
    """Of a published stream: only these tasks, such as `chartqa iconqa`; the others need not be on disk. The result is
    a stream of another name and digest."""
    ids: Ids | None = None
    """Of your own stream, a row whose id was used before: refuse leaves it out as broken, renew puts a number behind
    the id, auto renews in training data unless it is the same row again. Default: what the file says, else auto."""
    orientation: Orientation | None = None
    """apply turns pictures upright as EXIF says, leave takes them as they are stored, as LLaVA's released code does.
    Default: what your stream file says, else apply."""
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
    backbone: str | None = None
    """Count how many rows take more tokens than a model is given: smol, a model directory or a hub id."""
    max_length: Count = 2048
    """With --backbone: the tokens that a row may take, its picture included."""
    size: str = "mini"
    """Of a generated stream: nano, mini or small."""
    data_seed: int = 0
    """Of a generated stream."""
    wait: bool = False
    """While another process prepares the same folder, wait for it instead of refusing."""
    debug: bool = False
    """A traceback instead of one sentence."""


def main(arguments: Sequence[str]) -> int:
    """Read the options and prepare; returns the exit code."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    command = read_options(Prepare, arguments, name="prepare", description=__doc__)
    return prepare(command, Terminal(width=_PIPED if piped else None))


def prepare(command: Prepare, console: Console) -> int:
    """Prepare and report; returns the exit code."""
    _check_options(command)
    out = place(command.out)
    with sole_preparer(out, wait=(lambda text: say(text, console)) if command.wait else None):
        return _prepare(command, out, console)


def _prepare(command: Prepare, out: Place, console: Console) -> int:
    if command.backbone is not None:  # read now, so that a mistake shows before hours of work
        from components.training.streaming import encoder_for  # imports Ray, and a model library later

        encoder_for(BackboneConfig(name=command.backbone, max_length=command.max_length))
    if command.stream in GENERATED_STREAMS:
        _generate(command, out, console)
    else:
        with _openers(command) as in_order:
            report = _import(command, out, console, in_order)
        if report.refused is not None:
            write_page(refused_report_path(out, "html"), report, None, None)
            show_report(report, console)
            where = refused_report_path(out)
            say(f"error: {report.refused}. {out} was not written; the report is {where}.", Terminal(stderr=True))
            return 1
        _look_closer(report, command, out, console)
    suite = command.stream in SUITES
    _show_next_step(
        "score" if suite else "learn", "--evaluation.suites" if suite else "--stream.name", command.out, console
    )
    return 0


def _kind(stream: str) -> str:
    known = {"a generated stream": GENERATED_STREAMS, "a published suite": SUITES, "a published stream": BENCHMARKS}
    return next((kind for kind, names in known.items() if stream in names), "a stream file")


def _check_options(command: Prepare) -> None:
    """Raises `ConfigError` for an option that was given and would not be looked at."""
    if command.address is not None and not command.ray:
        raise ConfigError("--address names a Ray cluster; give --ray with it.")
    kind = _kind(command.stream)
    for field in fields(command):
        of = _ONLY_OF.get(field.name, (kind,))
        if kind not in of and getattr(command, field.name) != field.default:
            option = f"--{field.name.replace('_', '-')}"
            hint = " Learn some of its tasks with --stream.order." if option == "--tasks" else ""
            raise ConfigError(f"{option} is for {' and '.join(of)}, {command.stream} is {kind}; leave it out.{hint}")


def _show_next_step(verb: str, option: str, out: str, console: Console) -> None:
    """The command to go on with: for the interpreter that runs now, and as short as an activated environment allows."""
    here = without_secrets(pipeline_command("coast.py", option, out))
    console.print(f"Prepared in {place(out)}; {verb} it with: {here}", soft_wrap=True, markup=False, highlight=False)
    name, _, arguments = here.partition(" ")
    if name not in ("python", "littoral"):
        active = "littoral" if Path(name).name == "littoral" else "python"
        hint = f"or, in an activated environment: {active} {arguments}"
        console.print(hint, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def _openers(command: Prepare) -> Iterator[OrderedMap]:
    """Threads of this process, or the nodes of a Ray cluster."""
    if not command.ray:
        yield Threads(workers=command.workers)
        return
    from components.data.formats.ray_map import ray_cluster  # importing Ray takes seconds

    with ray_cluster(command.address) as in_order:
        yield in_order


def _import(command: Prepare, out: Place, console: Console, in_order: OrderedMap) -> ImportReport:
    """A published stream or suite or a user's own stream, written to `out`; `in_order` opens its pictures."""
    if command.stream in SUITES or command.stream in BENCHMARKS:
        return _import_released(command, out, console, in_order)
    path = Path(command.stream).expanduser()
    if not path.is_file():
        allowed = listed(command.stream, [*BENCHMARKS, *GENERATED_STREAMS, *SUITES])
        raise ConfigError(f"{command.stream!r} is neither a stream file nor a named stream; the names are {allowed}")
    stream = read_stream_file(path)
    given = {"ids": command.ids, "orientation": command.orientation}
    tasks = tuple(replace(task, **{key: word for key, word in given.items() if word}) for task in stream.tasks)
    stream = replace(stream, tasks=tasks)
    return import_stream(stream, out, max_broken=command.max_broken or 0.0, in_order=in_order)


def _import_released(command: Prepare, out: Place, console: Console, in_order: OrderedMap) -> ImportReport:
    if command.root is None:
        raise ConfigError(f"{command.stream} is read from downloaded releases; give their folder with --root.")
    loss = ALLOWED_LOSS if command.max_broken is None else command.max_broken
    turned, strict = command.orientation or "apply", command.strict
    if command.stream in SUITES:
        return prepare_suite(command.stream, command.root, out, max_broken=loss, strict=strict, orientation=turned)
    stream = BENCHMARKS[command.stream]
    if command.tasks:
        stream = stream.part(command.tasks)
    console.print(f"{stream.name}: {', '.join(stream.task_names)}", soft_wrap=True, highlight=False)
    console.print(f"specification {stream.digest}", soft_wrap=True, highlight=False)
    return prepare_benchmark(
        stream, command.root, out, max_broken=loss, strict=strict, orientation=turned, in_order=in_order
    )


def _look_closer(report: ImportReport, command: Prepare, out: Place, console: Console) -> None:
    """Add what the written rows show (overlaps, sizes, lengths, samples) to the report, write it and print it."""
    shared: Shared | None = None
    if command.stream in SUITES:
        suite = open_suite(out)
        splits, room = [suite.test], {_split_name(suite.test): suite.max_new_tokens}
    else:
        stream = open_prepared(out)
        splits, room = stream.splits, {_split_name(task.test): task.max_new_tokens for task in stream.tasks}
        if command.overlaps:
            shared = _overlaps(stream, command, out)
            report = replace(report, leaks=shared.sentences)
    report = replace(report, lengths=_lengths(splits, command))
    seen = survey(splits, pictures_of(pairs_of(shared.pairs if shared is not None else ())), room=room)
    plain = [{**asdict(split), "samples": [sample.sample_id for sample in split.samples]} for split in seen.splits]
    pairs = None if shared is None else asdict(shared)
    report.write(out / "report.json", {"overlaps": pairs, "splits": plain})
    write_page(out / "report.html", report, shared, seen)
    show_report(report, console)
    for split in seen.splits:
        for remark in split.texts.remarks:
            say(f"{split.name}: {remark}.", console)
    if shared is not None:
        show_overlaps(shared, console)
    say(f"The report as a page: {out / 'report.html'}", console)


def _lengths(splits: Sequence[Split], command: Prepare) -> tuple[str, ...]:
    """How many rows the model that is named cannot take whole."""
    if command.backbone is None:
        return ()
    from components.training.lengths import longer_rows  # imports Ray, and a model library later

    backbone = BackboneConfig(name=command.backbone, max_length=command.max_length)
    return tuple(longer_rows(backbone, split) for split in splits)


def _split_name(split: Split) -> str:
    return f"{split.task} {split.split}"


def _generate(command: Prepare, out: Place, console: Console) -> None:
    """A generated stream: its splits and what they share."""
    config = StreamConfig(name=command.stream, size=command.size, data_seed=command.data_seed)
    stream = write_generated_stream(config, out)
    table = ReportTable(
        caption=stream.name,
        names=("split", "majority answer"),
        numbers=("rows", "share"),
        lines=tuple(
            (
                f"{split.task} {split.split}",
                str(split.card["majority_answer"]),
                f"{split.num_rows:,}",
                f"{float(str(split.card['majority_share'])):.1%}",
            )
            for split in stream.splits
        ),
    )
    say(table.caption, console)
    show_table(table, console)
    if command.overlaps:
        shared = _overlaps(stream, command, out)
        for sentence in shared.sentences:
            say(f"{sentence}.", console)
        show_overlaps(shared, console)


def _overlaps(stream: TaskStream, command: Prepare, out: Place) -> Shared:
    """What splits share, and all of it as overlaps.json in the prepared folder."""
    shared = overlaps_of(stream, in_order=Threads(workers=command.workers))
    content = json.dumps(asdict(shared), indent=2, ensure_ascii=False)
    write_text(out / "overlaps.json", content + "\n")
    return shared
