"""The watchdog of a worker process: one that makes no progress writes where it stands, and ends.

Ray Train takes that for a lost process, so the run goes on from its last checkpoint. Neither step needs Python's lock,
which may be what is held: the stacks are written by a C thread (faulthandler), and the process is ended by the kernel
(SIGALRM).
"""

from __future__ import annotations

import faulthandler
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from components.core.leftovers import temporary_folder
from components.core.location import Location, Place

STACKS_FOLDER = "stacks"  # of a run's folder
GRACE_S = 10.0  # between the stacks and the end: the other workers, which wait for this one, write theirs too
PATIENCE = 3.0  # times the longest time without progress so far
_LOOK_EVERY_S = 1.0  # for stacks that go to a store
_NEW_S = 300.0  # stacks this old belong to an earlier death

_watch: _Watch | None = None


class _Watch:
    def __init__(self, file: TextIO, limit_s: float) -> None:
        self._file, self._limit_s, self._slowest_s = file, limit_s, 0.0
        self._last = self._armed = time.monotonic()
        self._arm()

    def beat(self) -> None:
        now = time.monotonic()
        self._slowest_s, self._last = max(self._slowest_s, now - self._last), now
        if now > self._armed + min(1.0, self._limit_s / 10):  # arming starts a thread
            self._armed = now
            self._arm()

    def _arm(self) -> None:
        limit_s = max(self._limit_s, PATIENCE * self._slowest_s)
        faulthandler.dump_traceback_later(limit_s, file=self._file)
        signal.setitimer(signal.ITIMER_REAL, limit_s + GRACE_S)


@contextmanager
def watchdog(run_dir: Place, rank: int, minutes: float) -> Iterator[None]:
    """While open, this process ends unless `beat` is called at least every so many minutes; 0: never.

    After slow steps it waits longer, `PATIENCE` times the slowest. The stacks of all its threads are then in a file of
    the run's `STACKS_FOLDER`: in a store, unless one of them keeps Python's lock, which putting it there needs.
    """
    if minutes == 0:
        yield
    elif isinstance(run_dir, Path):
        with _watched(run_dir / STACKS_FOLDER, rank, minutes):
            yield
    else:
        near, done = temporary_folder("stacks"), threading.Event()
        put = threading.Thread(target=_put, args=(near, run_dir / STACKS_FOLDER, done), name="stacks", daemon=True)
        put.start()
        try:
            with _watched(near, rank, minutes):
                yield
        finally:
            done.set()
            shutil.rmtree(near, ignore_errors=True)


def _put(near: Path, target: Location, done: threading.Event) -> None:
    """Put the stacks, once there are any, while this process has `GRACE_S` left."""
    while not done.wait(_LOOK_EVERY_S):
        written = [path for path in near.glob("*.txt") if path.stat().st_size]
        if written and not done.wait(_LOOK_EVERY_S):  # all threads' are in it by now
            with suppress(OSError):
                (target / written[0].name).put(written[0])
            return


@contextmanager
def _watched(folder: Path, rank: int, minutes: float) -> Iterator[None]:
    global _watch
    folder.mkdir(exist_ok=True)
    for path in folder.glob(f"*-rank-{rank}.txt"):
        if path.stat().st_size == 0:  # of a process that ended for another reason
            path.unlink()
    path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-rank-{rank}.txt"
    with path.open("w", encoding="utf-8") as file:
        _watch = _Watch(file, minutes * 60)
        try:
            yield
        finally:
            _watch = None
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
    path.unlink()
    with suppress(OSError):  # stacks of earlier processes, or another rank's
        folder.rmdir()


def beat() -> None:
    """Tell the watchdog of this process, if there is one, that the run goes on."""
    if _watch is not None:
        _watch.beat()


def hung(run_dir: Place) -> str:
    """A clause for what a watchdog has just written about a run; empty if none has."""
    now = time.time()
    with suppress(OSError):
        for path in (run_dir / STACKS_FOLDER).glob("*.txt"):
            found = path.stat()
            if found.st_size and now - found.st_mtime < _NEW_S:
                return f"a worker made no progress for cluster.hang-minutes (its stacks are in {path.parent})"
    return ""
