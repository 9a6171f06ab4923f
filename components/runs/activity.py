"""What a run does now, for `littoral status`: a small file in its folder. Light on purpose (no torch, no ray).

A thread of the driver writes it, at most once a second and without syncing: a storage that is full or hangs costs the
run nothing. It names the holder of the run's lock: what a process that was killed has left there is nobody's activity.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from components.core.errors import ConfigError
from components.core.events import (
    EvaluationProgress,
    Event,
    PhaseBegan,
    RowScored,
    StepDone,
    SuitesScored,
    TaskStarted,
)
from components.core.files import write_bytes
from components.core.location import Place
from components.core.lock import Holder, holder_of
from components.core.run_files import ACTIVITY_FILE
from components.evaluation.matrix import ZERO_SHOT
from components.runs.folder_json import read_object

EVERY_S, EVERY_S_IN_STORES = 1.0, 5.0  # of a store, each time costs a request
END_S = 2.0  # how long the end of a run waits for the file to be removed


class Activity:
    """While open, `handle` takes a run's events and the run's folder says what it does. Hold the run's lock before."""

    def __init__(
        self,
        run_dir: Place,
        tasks: Sequence[str],
        num_tasks: int | None = None,
        *,
        beside: bool = False,
        scored: Sequence[str] | None = None,
    ) -> None:
        """`tasks`: of which the first `num_tasks`, or all, are learned. `scored`: those that are scored, where segments
        of a stream without boundaries are learned. `beside`: at the same time.
        """
        self._path, self._tasks = run_dir / ACTIVITY_FILE, [*tasks]
        self._scored = [*(tasks if scored is None else scored)]
        self._num_tasks = len(tasks) if num_tasks is None else num_tasks
        self._said = self._by = ""
        self._beside, self._learning, self._scoring = beside, "", ""
        self._changed, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write, name="activity", daemon=True)

    def __enter__(self) -> Self:
        with suppress(OSError):  # without it nothing is told
            holder = holder_of(self._path.parent)
            self._by = "" if holder is None else holder.name
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._changed.set()
        self._thread.join(timeout=END_S)

    def handle(self, event: Event) -> None:
        """Note what an event says; takes no time."""
        said = activity(event, self._tasks, self._num_tasks, scored=self._scored)
        if said and self._beside:
            said = self._both(event, said)
        if said:
            self._said = json.dumps({"by": self._by, "doing": said, "at": datetime.now().astimezone().isoformat()})
            self._changed.set()

    def _both(self, event: Event, said: str) -> str:
        """What is learned and what is scored meanwhile; a scored row changes nothing of what is learned."""
        match event:
            case EvaluationProgress():
                self._scoring = said
            case RowScored() | SuitesScored():
                self._scoring = ""
            case _:
                self._learning = said
        return "; ".join(filter(None, (self._learning, self._scoring)))

    def _write(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            if self._done.is_set():
                break
            with suppress(OSError):
                write_bytes(self._path, self._said.encode())
            self._done.wait(EVERY_S if isinstance(self._path, Path) else EVERY_S_IN_STORES)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def activity(event: Event, tasks: Sequence[str], num_tasks: int, *, scored: Sequence[str] | None = None) -> str:
    """`learning task 2 of 4 (iconqa), update 37 of 60`; empty for an event that says nothing of it."""

    def task(number: int) -> str:
        return f"task {number} of {num_tasks} ({tasks[number - 1]})"

    match event:
        case TaskStarted():
            return f"learning {task(event.index + 1)}, update {event.resumed_at} of {event.num_updates}"
        case StepDone():
            return f"learning {task(event.index + 1)}, update {event.update} of {event.num_updates}"
        case EvaluationProgress():
            before = event.after == ZERO_SHOT or event.after not in tasks
            after = "before training" if before else f"after {task(tasks.index(event.after) + 1)}"
            what = event.task if event.task in (scored or tasks) else f"suite {event.task}"
            return f"scoring {after}: {what} {event.done}/{event.total}"
        case RowScored() | SuitesScored():
            learned = event.tasks_learned
            return f"preparing {task(learned + 1)}" if learned < num_tasks else "ending"
        case PhaseBegan():
            return event.phase
        case _:
            return ""


def read_activity(run_dir: Place, holder: Holder | None) -> tuple[str, datetime | None]:
    """What the holder of a run's lock does, and since when; empty where no live process says it."""
    with suppress(ConfigError, ValueError):
        found = read_object(run_dir / ACTIVITY_FILE) if holder is not None and holder.holds and holder.process else {}
        if holder is not None and found.get("by") == holder.name and isinstance(found.get("doing"), str):
            return found["doing"], datetime.fromisoformat(str(found.get("at"))).astimezone()
    return "", None
