"""Stopping a run early without losing work: its workers look for a file named `stop` in its folder as they go.

While they make updates, they agree on it within a second and an update, write a checkpoint and leave by themselves, so
the same command goes on with the run; while they answer questions, they leave within a second and a batch. If the run
were killed instead, its workers would keep their place in the cluster until Ray notices. SIGINT and SIGTERM write that
file, too. In a sweep's folder it asks all trials that are running.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from components.core.errors import Terminated
from components.core.location import Location, Place

LOOK_EVERY_S = 1.0  # between looks at the run's folder, which may be on a slow shared storage

STOP_FILE = "stop"
_FOR_NOW = "for now\n"  # what the file says in a trial that is to go on when its sweep does


class StopRequested(Exception):
    """Leaves a worker's loop; the driver then raises `StreamStopped`."""


def request_stop(run_dir: Place, *, for_now: bool = False) -> None:
    """Ask the run in this folder to stop within its next updates. An earlier request stays as it is.

    `for_now`: a trial goes on when its sweep does; one that is asked because it is behind does not.
    """
    said = _FOR_NOW if for_now else ""
    if isinstance(run_dir, Location):  # it has one writer as a rule; of two at once the last one's word holds
        if not (run_dir / STOP_FILE).exists():
            (run_dir / STOP_FILE).put(said.encode())
        return
    with suppress(FileExistsError), (run_dir / STOP_FILE).open("x", encoding="utf-8") as file:
        file.write(said)


def stop_requested(run_dir: Place) -> bool:
    """Whether the run in this folder, or all trials of the sweep in it, were asked to stop."""
    return (run_dir / STOP_FILE).exists()


def ended_early(run_dir: Place) -> bool:
    """Whether a trial was asked to stop for a reason of its own: it stays so when its sweep goes on."""
    try:
        return (run_dir / STOP_FILE).read_text(encoding="utf-8") != _FOR_NOW
    except FileNotFoundError:
        return False


def clear_stop(run_dir: Place) -> None:
    """Withdraw the request, before a stopped run is continued."""
    (run_dir / STOP_FILE).unlink(missing_ok=True)


class StopWatch:
    """Whether a run was asked to stop, looked up at most every `LOOK_EVERY_S`.

    Who asks does not wait for a store: a thread looks there, and tries again where it fails.
    """

    def __init__(self, run_dir: Place) -> None:
        self._run_dir, self._next_look, self._requested = run_dir, 0.0, False
        self._looking: threading.Thread | None = None

    def requested(self) -> bool:
        """What the last look said; once true, always true."""
        if not self._requested and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_EVERY_S
            if not isinstance(self._run_dir, Location):
                self._requested = stop_requested(self._run_dir)
            elif self._looking is None or not self._looking.is_alive():
                self._looking = threading.Thread(target=self._look, name="stop", daemon=True)
                self._looking.start()
        return self._requested

    def _look(self) -> None:
        with suppress(OSError):
            self._requested = stop_requested(self._run_dir)


@contextmanager
def stopping_on_signals(run_dir: Place, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """While open, the first SIGINT or SIGTERM asks the run or sweep to stop, and the second ends this process as usual.

    The first also ends it where the folder cannot be written. Yields a function that raises `KeyboardInterrupt`
    (`Terminated` for SIGTERM) if a signal has come; call it after the workers have left. A signal that this process
    ignores, such as SIGINT under nohup, stays ignored. Outside the main thread, as in a trial of a sweep, nothing is
    caught.
    """
    received: list[int] = []
    caught = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(number) is not signal.SIG_IGN
    ]

    def handler(number: int, frame: FrameType | None) -> None:
        if received:
            for each in caught:
                signal.signal(each, signal.SIG_DFL)  # for good: a third ends the process where it stands
            raise _exception_of(number)
        received.append(number)
        try:
            request_stop(run_dir)
        except OSError:  # no room, or no longer there: the workers cannot be asked
            raise _exception_of(number) from None
        # Whoever read the output may have ended by the same signal. Rich makes a SystemExit of a closed pipe.
        with suppress(OSError, SystemExit):
            say("stopping in order; a second signal ends it at once")

    def raise_if_received() -> None:
        if received:
            raise _exception_of(received[0])

    before = {number: signal.signal(number, handler) for number in caught}
    try:
        yield raise_if_received
    finally:
        for number, old in before.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, old)


def _exception_of(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
