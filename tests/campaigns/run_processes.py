"""The processes of a run, seen from outside: which there are, what each one is, and which of them are left over.

This process adopts the orphans of all that it starts (Linux), so its descendants are all that a run has ever started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from dataclasses import dataclass, field

import psutil

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # of prctl
PARTS = {  # how a process's title begins
    "worker": ("ray::LocalWorker", "ray::RayTrainWorker"),
    "data": ("ray::MapBatches", "ray::MapWorker", "ray::ReadBatches", "ray::compute_features"),
    "controller": ("ray::TrainController",),
    "mailbox": ("ray::_QueueActor",),
}
NAMES = {"raylet": "raylet", "gcs": "gcs_server"}


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> None:
    """For a child before `exec`: a campaign that is killed leaves no run behind."""
    ctypes.CDLL(None, use_errno=True).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def descendants(of: int | None = None) -> list[psutil.Process]:
    """All living descendants of a process, by default this one; finished ones are reaped."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(of).children(recursive=True):
            if _is_alive(process):
                found.append(process)
            elif of is None:
                _reap(process)
    return found


def of_part(part: str, processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that are a part of Ray: see `PARTS` and `NAMES`."""
    found: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if process.name() == NAMES.get(part) or title.startswith(PARTS.get(part, ("\0",))):
                found.append(process)
    return found


def send(number: signal.Signals, processes: list[psutil.Process]) -> int:
    """Send a signal to all of them; how many there still were."""
    reached = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
            reached += 1
    return reached


@dataclass(frozen=True)
class Left:
    """What was left of one start's processes: seconds after its end, and titles; none of them when all had gone."""

    start: str
    seconds: float
    titles: tuple[str, ...] = ()


@dataclass
class Leftovers:
    """Watches what starts have left behind, for at most `limit_s` after each kill; then it is killed."""

    limit_s: float
    _watched: list[tuple[str, float, list[psutil.Process]]] = field(default_factory=list)

    def watch(self, start: str, since: float) -> None:
        """All that there is now is left over by a start whose driver has ended; `since`: when it was killed."""
        self._watched.append((start, since, self.others()))

    def others(self) -> list[psutil.Process]:
        """All descendants that no earlier start has left behind."""
        known = {process for _, _, left in self._watched for process in left}
        return [process for process in descendants() if process not in known]

    def gone(self) -> list[Left]:
        """The starts of which nothing is left since the last call, or something for too long."""
        found, going = [], []
        now = time.monotonic()
        for start, since, left in self._watched:
            alive = [process for process in left if _is_alive(process)]
            if not alive:
                found.append(Left(start, now - since))
            elif now - since > self.limit_s:
                found.append(Left(start, now - since, tuple(sorted(map(_title, alive)))))
                send(signal.SIGKILL, alive)
            else:
                going.append((start, since, alive))
        self._watched = going
        descendants()  # reaps
        return found

    @property
    def some(self) -> bool:
        return bool(self._watched)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _reap(process: psutil.Process) -> None:
    """An adopted process that has ended. Never a driver: `Popen` waits for those itself."""
    with contextlib.suppress(psutil.Error, OSError):
        if process.ppid() == os.getpid() and process.pid not in own_children:
            os.waitpid(process.pid, os.WNOHANG)


own_children: set[int] = set()  # process ids that belong to a `Popen`


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:60] or process.name()
    return "?"
