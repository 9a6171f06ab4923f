"""A prepared stream on disk: `DIR/stream.json` names the tasks in order, `DIR/<task>/{train,test}` are their splits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from components.core.errors import DataError
from components.data.rows import open_split, verify_split
from components.data.tasks import Task, TaskStream

STREAM_FORMAT = "littoral-stream/1"


@dataclass(frozen=True, kw_only=True)
class PreparedTask:
    """One entry of stream.json; its splits are in `<name>/train` and `<name>/test`."""

    name: str
    max_new_tokens: int


def write_stream_json(folder: Path, name: str, tasks: list[PreparedTask]) -> None:
    """Write `folder`/stream.json."""
    entries = [{"name": task.name, "max_new_tokens": task.max_new_tokens} for task in tasks]
    text = json.dumps({"format": STREAM_FORMAT, "name": name, "tasks": entries}, indent=2, ensure_ascii=False)
    (folder / "stream.json").write_text(text + "\n", encoding="utf-8")


def open_prepared(folder: Path) -> TaskStream:
    """The stream in `folder`, every shard compared with its checksum; raises `DataError`."""
    path = folder / "stream.json"
    if not path.is_file():
        raise DataError(
            f"{folder} is not a prepared stream: it has no stream.json; write one with pipelines/prepare.py."
        )
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
