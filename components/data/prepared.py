"""A prepared stream on disk: `DIR/stream.json` names the tasks in order, `DIR/<task>/{train,test}` are their splits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from components.core.errors import ConfigError, DataError
from components.data.rows import open_split, verify_split
from components.data.tasks import Task, TaskStream

STREAM_FORMAT = "littoral-stream/1"
_LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class PreparedTask:
    """One entry of stream.json; the splits lie in `<name>/train` and `<name>/test`."""

    name: str
    max_new_tokens: int


def write_stream_json(folder: Path, name: str, tasks: list[PreparedTask]) -> None:
    """Write `folder`/stream.json."""
    entries = [{"name": task.name, "max_new_tokens": task.max_new_tokens} for task in tasks]
    text = json.dumps({"format": STREAM_FORMAT, "name": name, "tasks": entries}, indent=2, ensure_ascii=False)
    (folder / "stream.json").write_text(text + "\n", encoding="utf-8")


def open_prepared(folder: Path) -> TaskStream:
    """The stream that `folder` holds, every shard compared with its checksum; raises `DataError`."""
    path = folder / "stream.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != STREAM_FORMAT:
            raise DataError(f"{path} has format {manifest['format']!r}, expected {STREAM_FORMAT!r}; prepare it again.")
        name = str(manifest["name"])
        tasks = [PreparedTask(name=str(e["name"]), max_new_tokens=int(e["max_new_tokens"])) for e in manifest["tasks"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a readable stream manifest ({error!r}); prepare the stream again.") from error
    for task in tasks:
        if Path(task.name).name != task.name:
            raise DataError(f"{path} names the task {task.name!r}; a task is a folder beside stream.json.")
    return TaskStream(name=name, tasks=tuple(_open_task(folder, task) for task in tasks))


def _open_task(folder: Path, task: PreparedTask) -> Task:
    train, test = open_split(folder / task.name / "train"), open_split(folder / task.name / "test")
    for split in (train, test):
        verify_split(split)
    return Task(name=task.name, train=train, test=test, max_new_tokens=task.max_new_tokens)


@contextmanager
def whole_or_nothing(out_dir: Path) -> Iterator[Path]:
    """A scratch folder beside `out_dir` that takes its place when the block ends well and vanishes when it fails.

    An existing `out_dir` is replaced only when it is empty or holds a prepared stream or suite; else `ConfigError`.
    """
    out_dir = out_dir.absolute()
    _check_replaceable(out_dir)
    partial = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        _take_place(partial, out_dir)
    except OSError as error:
        raise DataError(f"{out_dir} cannot be written ({error}); give a folder you may write to.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_or_later(out_dir: Path) -> Iterator[Path]:
    """Like `whole_or_nothing`, but a block that fails finds its scratch folder again at the next call.

    One process at a time may hold it: `ConfigError` for a second one.
    """
    out_dir = out_dir.absolute()
    _check_replaceable(out_dir)
    partial = out_dir.with_name(f".{out_dir.name}.unfinished")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with FileLock(partial / _LOCK, timeout=0):
            yield partial
            (partial / _LOCK).unlink()
            _take_place(partial, out_dir)
    except Timeout as error:
        raise ConfigError(f"Another process prepares {out_dir}; wait for it, or give another --out.") from error
    except OSError as error:
        raise DataError(f"{out_dir} cannot be written ({error}); give a folder you may write to.") from error


def _check_replaceable(out_dir: Path) -> None:
    ours = any((out_dir / name).is_file() for name in ("stream.json", "suite.json"))
    if out_dir.is_dir() and any(out_dir.iterdir()) and not ours:
        raise ConfigError(f"{out_dir} exists and holds no prepared stream; give --out a new or empty folder.")


def _take_place(partial: Path, out_dir: Path) -> None:
    """Rename `partial` to `out_dir`, whose former content goes."""
    if not out_dir.exists():
        partial.rename(out_dir)
        return
    old = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.old")
    out_dir.rename(old)
    partial.rename(out_dir)
    shutil.rmtree(old)
