"""A user's own stream: the data that a TOML file names becomes Parquet splits, or a report of what is wrong."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from components.core.errors import ConfigError, DataError
from components.core.file_systems import without_secrets
from components.core.location import Location, Place
from components.core.options import listed
from components.data.formats.items import Ids, ItemReader, distinct_items
from components.data.formats.parallel_map import SERIAL, OrderedMap
from components.data.formats.pictures import ORIENTATIONS, Orientation
from components.data.formats.sources import FORMATS, Format, Source, open_source
from components.data.formats.storage import locate, looked_at
from components.data.mixture import Mixture
from components.data.preparation import check_max_broken, own_refusal, prepare
from components.data.prepared import write_stream_json
from components.data.problems import ItemError, Problem
from components.data.quality.report import NOT_STATED, FileReport, ImportReport
from components.data.rows import Row, write_split
from components.metrics import SCORERS

RULES = 6  # how rows are read; a stream that was imported under other rules is imported again
IDS: tuple[Ids, ...] = ("auto", "refuse", "renew")
_REQUIRED = ("name", "train", "test", "metric", "max_new_tokens")
_OPTIONAL = ("images", "format", "instruction")
_EVERYWHERE = ("ids", "orientation", "licence")  # of the stream, or of one task
_FIELDS_LISTED = 50
_LONGEST_TEXT = 1000  # characters of a path or a word
_LARGEST_STREAM_FILE = 1 << 22  # bytes
Chosen = TypeVar("Chosen", bound=str)
_TAKEN = ("stream.json", "report.json", "report.html", "zero-shot")  # files beside the tasks, and a row of the matrix
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """One `[[task]]` of a stream file, its files found."""

    name: str
    train: Source
    test: Source
    images: Location | None
    metric: str
    max_new_tokens: int
    ids: Ids = "auto"
    """A row whose id was used before is left out as broken (refuse) or gets "~" and a number appended (renew). auto: it
    is renewed in training data when its content differs from the earlier row's, and left out otherwise."""
    orientation: Orientation = "apply"
    """Whether pictures are turned upright by their EXIF orientation, or learned as stored."""
    licence: str = NOT_STATED
    """The terms of the data, for the report and the prepared splits."""


@dataclass(frozen=True, kw_only=True)
class StreamFile:
    """A stream file as read: with tasks of its own, or the name of the stream whose tasks it mixes."""

    name: str
    tasks: tuple[TaskSource, ...]
    mixture: Mixture | None = None
    source: str | None = None
    """`from`: a named stream, or a prepared folder."""


def read_stream_file(path: Path) -> StreamFile:
    """Read and check a stream's TOML; raises `ConfigError` naming the task and the field, `DataError` for files."""
    try:
        if path.stat().st_size > _LARGEST_STREAM_FILE:
            raise ConfigError(f"The stream file {path} has more than {_LARGEST_STREAM_FILE:,} bytes; name fewer tasks.")
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"The stream file {path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, an impossible date, brackets without end
        raise ConfigError(f"The stream file {path} is not TOML ({error}).") from error
    _check_keys(table, ("name", "task", "from", "mixture", *_EVERYWHERE), f"The stream file {path}")
    name, tasks = table.get("name"), table.get("task")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f'The stream file {path} needs the field "name": letters, digits, ".", "_" and "-".')
    mixture = Mixture.read(table["mixture"], f"The stream file {path}") if "mixture" in table else None
    if "from" in table:
        return _mixed(path, name, table, mixture)
    if not isinstance(tasks, list) or not tasks:
        raise ConfigError(f"The stream file {path} names no task; add at least one [[task]].")
    shared = {key: table[key] for key in _EVERYWHERE if key in table}
    sources = tuple(_task_source(path, index, task, shared) for index, task in enumerate(tasks, start=1))
    doubled = [task for task, times in Counter(source.name for source in sources).items() if times > 1]
    if doubled:
        raise ConfigError(f"The stream file {path} names the task {doubled[0]} twice; give each task its own name.")
    if mixture is not None:
        mixture.check_tasks([source.name for source in sources])  # before the import, which may take hours
    return StreamFile(name=name, tasks=sources, mixture=mixture)


def _mixed(path: Path, name: str, table: Mapping[str, object], mixture: Mixture | None) -> StreamFile:
    """A file that mixes the tasks of another stream."""
    source, beside = table["from"], [key for key in table if key not in ("name", "from", "mixture")]
    if not isinstance(source, str) or not source or "\0" in source or len(source) > _LONGEST_TEXT:
        raise ConfigError(f"The stream file {path} has from = {source!r:.200}; give a named stream or a folder's path.")
    if beside:
        raise ConfigError(f"The stream file {path} takes its tasks from {source}, so it cannot state {beside[0]!r}.")
    if mixture is None:
        raise ConfigError(f"The stream file {path} takes its tasks from {source} and mixes nothing; add [mixture].")
    return StreamFile(name=name, tasks=(), mixture=mixture, source=source)


def _check_keys(table: Mapping[str, object], allowed: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in allowed:
            raise ConfigError(f"{where} has the unknown field {key!r:.80}; allowed are {listed(key, allowed)}")


def _task_source(path: Path, index: int, table: object, shared: Mapping[str, object]) -> TaskSource:
    if not isinstance(table, dict):
        raise ConfigError(f"The stream file {path} must write its tasks as [[task]] tables.")
    given = table.get("name")
    where = f"The task {given!r:.120} in {path}" if given else f"Task {index} in {path}"
    _check_keys(table, (*_REQUIRED, *_OPTIONAL, *_EVERYWHERE), where)
    for key in _REQUIRED:
        if key not in table:
            raise ConfigError(f"{where} lacks the field {key!r}; each [[task]] needs {', '.join(_REQUIRED)}.")
    texts = _texts({**shared, **table}, where)
    if not _NAME.fullmatch(texts["name"]):
        raise ConfigError(f'{where}: a task name may hold letters, digits, ".", "_" and "-" only, 100 at most.')
    if texts["name"] in _TAKEN:
        raise ConfigError(f"{where} has a name that is taken; tasks may not be called {', '.join(_TAKEN)}.")
    if texts["metric"] not in SCORERS:
        raise ConfigError(f"{where} has the unknown metric {texts['metric']!r}; allowed are {', '.join(SCORERS)}.")
    tokens = table["max_new_tokens"]
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ConfigError(f"{where} has max_new_tokens = {tokens!r}; it must be a whole number above 0.")
    base = path.absolute().parent
    images = locate(texts["images"], base) if "images" in texts else None
    if images is not None:
        with looked_at(images):
            is_folder = images.is_dir()
        if not is_folder:
            raise DataError(
                f"{where} names images = {without_secrets(texts['images'])!r}, but {images.shown} is not a folder."
            )
    return TaskSource(
        name=texts["name"],
        train=_source(texts, "train", base, where),
        test=_source(texts, "test", base, where),
        images=images,
        metric=texts["metric"],
        max_new_tokens=tokens,
        ids=_choice(texts, "ids", IDS, where),
        orientation=_choice(texts, "orientation", ORIENTATIONS, where),
        licence=texts.get("licence", NOT_STATED),
    )


def _choice(texts: Mapping[str, str], key: str, allowed: tuple[Chosen, ...], where: str) -> Chosen:
    """One of the allowed words; the first is the default."""
    found = next((word for word in allowed if word == texts.get(key, allowed[0])), None)
    if found is None:
        raise ConfigError(f"{where} has {key} = {texts[key]!r}; allowed are {', '.join(map(str, allowed))}.")
    return found


def _texts(table: Mapping[str, object], where: str) -> dict[str, str]:
    """The fields of a task that are texts."""
    texts: dict[str, str] = {}
    for key in ("name", "train", "test", "metric", *_OPTIONAL, *_EVERYWHERE):
        value = table.get(key)
        if value is None:
            continue
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{where} has {key} = {value!r:.200}; it must be a text.")
        if "\0" in value:
            raise ConfigError(f"{where} has {key} = {value!r:.200}; a text there cannot hold a NUL character.")
        if key != "instruction" and len(value) > _LONGEST_TEXT:
            raise ConfigError(
                f"{where:.200} has a {key} of more than {_LONGEST_TEXT:,} characters; give a shorter one."
            )
        texts[key] = value
    return texts


def _source(texts: Mapping[str, str], key: str, base: Path, where: str) -> Source:
    given: Format | None = next((name for name in FORMATS if name == texts.get("format")), None)
    if "format" in texts and given is None:
        raise ConfigError(f"{where} has the unknown format {texts['format']!r}; allowed are {', '.join(FORMATS)}.")
    try:
        return open_source(locate(texts[key], base), key, given=given, instruction=texts.get("instruction"))
    except DataError as error:
        raise DataError(f"{where} names {key} = {without_secrets(texts[key])!r}, but: {error}") from error


def import_stream(
    stream: StreamFile, out_dir: Place, *, max_broken: float = 0.0, in_order: OrderedMap = SERIAL
) -> ImportReport:
    """Write `stream` to `out_dir` without its broken rows, unless their share in any file exceeds `max_broken`.

    Every file is read to its end either way, so that the report is complete. Refused: nothing is written but
    `<out_dir>.report.json`. `in_order` opens the pictures.
    """
    check_max_broken(max_broken)
    if stream.source is not None:
        raise ConfigError(
            f"The stream {stream.name} mixes the tasks of {stream.source}, so there is nothing to prepare; give its "
            "file to --stream.name."
        )

    def write(folder: Place) -> Iterator[FileReport]:
        for task in stream.tasks:
            for split, source in (("train", task.train), ("test", task.test)):
                report = FileReport(task=task.name, split=split, file=source.shown, licence=task.licence)
                card: dict[str, object] = {
                    "name": task.name,
                    "file": source.name,
                    "metric": task.metric,
                    "licence": task.licence,
                    "pictures": report.pictures,  # the card is written last, when all are counted
                }
                rows = _rows(task, split, source, report, in_order)
                write_split(rows, folder / task.name / split, task=task.name, split=split, card=card)
                yield report

    def finish(folder: Place) -> None:
        tokens = {task.name: task.max_new_tokens for task in stream.tasks}
        write_stream_json(folder, stream.name, tokens, stream.mixture)

    return prepare(stream.name, out_dir, write, finish, partial(own_refusal, max_broken=max_broken))


def _rows(task: TaskSource, split: str, source: Source, report: FileReport, in_order: OrderedMap) -> Iterator[Row]:
    reader = ItemReader(
        task=task.name,
        split=split,
        metric=task.metric,
        image_root=task.images,
        source=source.name,
        orientation=task.orientation,
    )
    reading = source.read()

    def renewed() -> None:
        report.repeated_ids += 1

    ids = "refuse" if task.ids == "auto" and split == "test" else task.ids  # predictions are joined by id
    items = distinct_items(reading.items(), reading.described, ids=ids, renewed=renewed)
    for read in in_order(reader.read, items):
        report.rows += 1
        file, row = reading.locate(read.number)
        if isinstance(read.found, ItemError):
            report.leave_out(read.found.at(file, row))
            if read.found.rest_lost:
                report.cut = file
            continue
        report.keep(read.found, read.picture)
        _count(report.fields, read.unread)
        if "grey assumed" in read.picture:
            detail = "the picture does not declare the range of its grey values, so one was assumed"
            report.note(Problem(kind="grey assumed", file=file, row=row, detail=detail))
        yield read.found
    for number, detail in reading.remarks:
        file, row = reading.locate(number)
        report.note(Problem(kind="lists joined", file=file, row=row, detail=detail))
    for name in reading.unread():
        report.fields[name] = report.kept
    if report.rows == 0:
        report.add("no rows", None, "the file has no rows")


def _count(fields: Counter[str], names: Iterable[str]) -> None:
    """Count the fields of one row; names that differ from row to row count as one."""
    for name in names:
        fields[name if name in fields or len(fields) < _FIELDS_LISTED else "others"] += 1
