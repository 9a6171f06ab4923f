"""What a tracker still has to send, kept in the run's folder: neither a lost store nor a dead driver costs an event.

`mlflow_events.jsonl` holds one event a line, with the time it came; lines are only ever added. `mlflow_sent.json` says
up to which byte the store has them. Both are small beside the run: a row of scores is as long as the stream has tasks.
A run in a store of files has a folder of that name, with the parts of such a file (core/appended.py).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from components.core.appended import EVERY_S, Parts
from components.core.errors import ConfigError
from components.core.events import Event, RowScored, StepDone, SuitesScored, TaskStarted, UpdateSkipped
from components.core.files import write_json
from components.core.location import Place

EVENTS_FILE, SENT_FILE = "mlflow_events.jsonl", "mlflow_sent.json"
_KINDS = {kind.__name__: kind for kind in (TaskStarted, StepDone, UpdateSkipped, RowScored, SuitesScored)}
_SYNCED = (TaskStarted, RowScored, SuitesScored)  # single steps may be lost with the machine's power


@dataclass(frozen=True, kw_only=True)
class Queued:
    """One event of the outbox."""

    event: Event
    at_ms: int  # when it came; a point that is sent twice has the same time twice, which MLflow keeps once
    end: int  # byte after its line


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How far a store has what is in the outbox."""

    run_id: str  # of MLflow
    offset: int = 0  # bytes of the outbox
    closed: str | None = None  # the run's status, once all is sent and its run is closed


class Outbox:
    """The queue of one run. One process writes; one thread of it reads.

    In a store of files, an update's event may wait to be put there for the next one that must not wait: a task's start,
    a row, or an update whose number `checkpoint_every` divides, because a killed run goes on behind such an update.
    """

    def __init__(self, run_dir: Place, *, checkpoint_every: int | None = None) -> None:
        self._checkpoint_every = checkpoint_every
        file, self._sent_path = run_dir / EVENTS_FILE, run_dir / SENT_FILE
        self._parts: Parts | None = None
        if isinstance(file, Path):
            self._path = file
        else:
            self._parts = Parts(file)
            self._path = self._parts.file
        self._sent_kept_s = float("-inf")
        self._lock = threading.Lock()
        self._size = self._path.stat().st_size if self._path.is_file() else 0

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def add(self, event: Event) -> bool:
        """Append an event; False for those that are only for the console. Raises `OSError`, as on a full disk."""
        if type(event).__name__ not in _KINDS:
            return False
        content = {"kind": type(event).__name__, "at_ms": int(time.time() * 1000), "event": asdict(event)}
        line = json.dumps(content, default=_plain)
        with self._lock, self._path.open("ab") as file:
            # After a line that a dead process, or a full disk, left without an end, the next one begins anew.
            torn = self._size > 0 and not self._ends_whole()
            file.write((b"\n" if torn else b"") + line.encode() + b"\n")
            file.flush()
            if isinstance(event, _SYNCED):
                os.fsync(file.fileno())
            self._size = file.tell()
            if self._parts is not None:
                self._parts.keep(at_once=isinstance(event, _SYNCED) or self._before_checkpoint(event))
        return True

    def _before_checkpoint(self, event: Event) -> bool:
        update = event.update if isinstance(event, StepDone | UpdateSkipped) else None
        return update is not None and self._checkpoint_every is not None and update % self._checkpoint_every == 0

    def flush(self) -> None:
        """Put what was added, where the run is in a store."""
        if self._parts is not None:
            with self._lock:
                self._parts.keep(at_once=True)

    def read(self, start: int, end: int | None = None) -> Iterator[Queued]:
        """The events from byte `start` to `end`, or to the last whole line. Lines that are no event are passed over."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(start)
            while (end is None or file.tell() < end) and (line := file.readline()).endswith(b"\n"):
                queued = _from_line(line, file.tell())
                if queued is not None:
                    yield queued

    def sent(self) -> Sent | None:
        """How far the store is; None before anything was sent. Raises `ConfigError` for a broken file."""
        if not self._sent_path.is_file():
            return None
        try:
            content = json.loads(self._sent_path.read_text(encoding="utf-8"))
            return Sent(run_id=str(content["run_id"]), offset=int(content["offset"]), closed=content["closed"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._sent_path} cannot be read ({error}); delete it, and all events are sent again."
            ) from error

    def keep(self, sent: Sent) -> None:
        """Remember how far the store is; of a run that is in a store itself, not each time."""
        if self._parts is not None:
            if sent.closed is None and time.monotonic() < self._sent_kept_s + EVERY_S:
                return  # what is sent twice has the same time twice
            self._sent_kept_s = time.monotonic()
            self.flush()  # first: the mark is never beyond what is there
        write_json(self._sent_path, asdict(sent))

    def _ends_whole(self) -> bool:
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def is_recorded(run_dir: Place) -> bool:
    """Whether the store has all events of a run that has finished, and its run is closed as finished."""
    outbox = Outbox(run_dir)
    sent = outbox.sent()
    return sent is not None and sent.closed == "FINISHED" and sent.offset >= outbox.size


def _plain(value: object) -> object:
    """A number of NumPy as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _from_line(line: bytes, end: int) -> Queued | None:
    try:
        content = json.loads(line)
        event = _KINDS[content["kind"]](**content["event"])
        return Queued(event=event, at_ms=int(content["at_ms"]), end=end)
    except (ValueError, KeyError, TypeError):
        return None
