"""A prepared stream on disk: `DIR/stream.json` names the tasks in order, `DIR/<task>/{train,test}` are their splits."""

from __future__ import annotations

import json
from collections.abc import Mapping

from components.core.errors import ConfigError, DataError
from components.core.files import write_text
from components.core.location import Place
from components.core.reading import is_plain_name, read_object, understood
from components.data.mixture import Mixture
from components.data.rows import open_split, verify_split
from components.data.shards import PREPARE_AGAIN
from components.data.tasks import Task, TaskStream

STREAM_FORMAT = "littoral-stream/1"
MIXED_FORMAT = "littoral-stream/2"  # with a mixture, which an older version would overlook
STREAM_FILE = "stream.json"  # the marker of a prepared stream


def write_stream_json(folder: Place, name: str, tasks: Mapping[str, int], mixture: Mixture | None = None) -> None:
    """Write `folder`/stream.json; `tasks` gives every task's longest reply in tokens, in order."""
    entries = [{"name": task, "max_new_tokens": tokens} for task, tokens in tasks.items()]
    content: dict[str, object] = {"format": STREAM_FORMAT, "name": name, "tasks": entries}
    if mixture is not None:
        content |= {"format": MIXED_FORMAT, "mixture": mixture.to_json()}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_text(folder / STREAM_FILE, text + "\n")


def open_prepared(folder: Place) -> TaskStream:
    """The stream in `folder`, every shard compared with its manifest; raises `DataError`."""
    path = folder / STREAM_FILE
    if not path.is_file():
        raise DataError(
            f"{folder} is not a prepared stream: it has no stream.json; write one with pipelines/prepare.py."
        )
    manifest = read_object(path, DataError, PREPARE_AGAIN)
    if manifest.get("format") not in (STREAM_FORMAT, MIXED_FORMAT):
        given = manifest.get("format")
        raise DataError(f"{path} has format {given!r:.80}, expected {STREAM_FORMAT!r}; {PREPARE_AGAIN}.")
    with understood(path, DataError, PREPARE_AGAIN):
        name = str(manifest["name"])
        tasks = {str(task["name"]): int(task["max_new_tokens"]) for task in manifest["tasks"]}
    for task, tokens in tasks.items():
        if tokens < 1:
            raise DataError(f"{path} gives the task {task!r:.80} {tokens} new tokens; {PREPARE_AGAIN}.")
        if not is_plain_name(task):
            raise DataError(f"{path} names the task {task!r:.80}; a task is a folder beside stream.json.")
    try:
        mixture = Mixture.read(manifest["mixture"], str(path)) if manifest["format"] == MIXED_FORMAT else None
    except (ConfigError, KeyError) as error:
        raise DataError(f"{path} has no readable mixture ({error}); {PREPARE_AGAIN}.") from error
    opened = tuple(_open_task(folder / task, tokens) for task, tokens in tasks.items())
    return TaskStream(name=name, tasks=opened, mixture=mixture)


def _open_task(folder: Place, max_new_tokens: int) -> Task:
    train, test = open_split(folder / "train"), open_split(folder / "test")
    for split in (train, test):
        verify_split(split)
    return Task(name=folder.name, train=train, test=test, max_new_tokens=max_new_tokens)
