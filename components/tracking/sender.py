"""A tracker that cannot hurt: events go to a file at once, and one thread of its own sends them to the store.

Only that thread touches the store and what it is told (`StreamTracker`), so a store that is slow, hangs or dies keeps
nobody waiting but the end of the command, and that for a bounded time, a short one where its disk is full. What is not
sent then stays in the run's folder (see `outbox.py`); the next process of the run sends it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from components.core.events import Event, Note, RowScored
from components.core.location import Place
from components.tracking.config import Status, Tracker
from components.tracking.outbox import Outbox, Sent
from components.tracking.tracker import SEND_EVERY_S, StreamTracker

TELL_AFTER_S = 3.0  # a usual end takes less, and nothing need be said
RETRY_S = 5.0  # between tries at the end of the command


class WaitingTracker(Tracker):
    """Queues the events of a run that goes on while its store cannot be reached; its next command sends them."""

    def __init__(
        self, run_dir: Place, on_note: Callable[[Note], None] | None = None, *, checkpoint_every: int | None = None
    ) -> None:
        self._on_note = on_note
        self._outbox = Outbox(run_dir, checkpoint_every=checkpoint_every)
        sent = self._outbox.sent()
        self._offset = 0 if sent is None else sent.offset  # the store has all before this byte
        self._told_of_disk = False

    def handle(self, event: Event) -> None:
        """Queue one event."""
        self._queue(event)

    def finish(self, status: Status) -> None:
        """Say what is queued."""
        self._tell_what_is_left()

    def _queue(self, event: Event) -> bool:
        """Whether something was added."""
        try:
            return self._outbox.add(event)
        except (OSError, TypeError, ValueError) as error:
            if not self._told_of_disk:
                self._told_of_disk = True
                self._warn(f"MLflow will lack events that could not be queued on disk ({error}).")
            return False

    def _tell_what_is_left(self) -> None:
        self._outbox.flush()
        self._warn(
            f"MLflow does not have all of this run yet ({self._left()}); the run's own files are whole, and the same "
            "command sends the rest later."
        )

    def _left(self) -> str:
        left = sum(1 for _ in self._outbox.read(self._offset))
        return f"{left} event{'' if left == 1 else 's'} left" if left else "only its end is left"

    def _say(self, text: str) -> None:
        if self._on_note is not None:
            self._on_note(Note(text=text))

    def _warn(self, text: str) -> None:
        if self._on_note is not None:
            self._on_note(Note(text=text, warning=True))


class QueuedTracker(WaitingTracker):
    """Hands the events of a run to `tracker`, in order, from its own thread. `on_note` may be called from there.

    `wait_s`: how long the end waits while the store takes nothing. One call to a silent server may take two minutes.
    """

    def __init__(
        self,
        tracker: StreamTracker,
        run_dir: Place,
        on_note: Callable[[Note], None] | None = None,
        *,
        wait_s: float = 120.0,
        checkpoint_every: int | None = None,
    ) -> None:
        assert tracker.run_id is not None, "begin() comes first"
        super().__init__(run_dir, on_note, checkpoint_every=checkpoint_every)
        self.run_id, self.ui, self.view = tracker.run_id, tracker.ui, tracker.view
        self._tracker, self._wait_s = tracker, wait_s
        sent = self._outbox.sent()
        # A run that MLflow holds under another id has nothing yet: all of it is sent there.
        same = sent is not None and sent.run_id == self.run_id and sent.offset <= self._outbox.size
        self._offset = sent.offset if sent is not None and same else 0
        self._read_until = self._offset
        self._outbox.keep(Sent(run_id=self.run_id, offset=self._offset))
        tracker.remember(
            queued.event for queued in self._outbox.read(0, self._offset) if isinstance(queued.event, RowScored)
        )
        self._news = threading.Event()  # something was queued, or the command ends
        self._ending: Status | None = None
        self._abandoned = False
        self._done = threading.Event()
        # A daemon: a call that never returns must not keep the process.
        self._thread = threading.Thread(target=self._send_all, name="MLflow", daemon=True)
        self._thread.start()

    def handle(self, event: Event) -> None:
        """Queue one event; never waits for the store."""
        if self._queue(event):
            self._news.set()

    def finish(self, status: Status) -> None:
        """Wait until all is sent and the runs are closed, or until the store has taken nothing for `wait_s`."""
        self._ending = status
        self._news.set()
        try:
            whole = self._wait()
        except KeyboardInterrupt:
            whole = False
        self._abandoned = True
        if not whole:
            self._tell_what_is_left()

    def _wait(self) -> bool:
        """Whether the store took everything."""
        begin_s = moved_s = time.monotonic()
        before, told = self._moved(), False
        while not self._done.wait(timeout=0.2):
            now_s, moved = time.monotonic(), self._moved()
            if moved != before:
                before, moved_s = moved, now_s
            limit_s = min(self._wait_s, 2 * RETRY_S) if self._tracker.is_full else self._wait_s
            # On a full disk some calls may still succeed, so there the time counts from the beginning.
            still_s = now_s - (begin_s if self._tracker.is_full else moved_s)
            if still_s > limit_s or not self._thread.is_alive():
                return self._done.is_set()
            if not told and now_s - begin_s > TELL_AFTER_S:
                told = True
                self._say(
                    f"MLflow is still taking what this run recorded ({self._left()}); this waits until it is done, or "
                    f"has stood still for {limit_s:g} s. Ctrl-C ends without waiting; the same command sends the "
                    "rest later."
                )
        return True

    def _moved(self) -> tuple[int, int]:
        """Changes whenever the store has taken something."""
        return self._offset, self._tracker.taken

    # ---- the thread

    def _send_all(self) -> None:
        try:
            while not self._abandoned and not self._done.is_set():
                self._send_some()
        except Exception as error:  # noqa: BLE001 (told instead of a traceback of this thread; the outbox stays)
            self._warn(f"MLflow gets nothing more from this process ({type(error).__name__}: {error}).")

    def _send_some(self) -> None:
        """Hand over what is queued, and wait for more, or for the store, or close the runs."""
        ending = self._ending  # before the reading: all events came before it
        self._news.clear()
        for queued in self._outbox.read(self._read_until):
            self._tracker.handle(queued.event, queued.at_ms)
            self._read_until = queued.end
            self._keep()
            if self._abandoned or self._tracker.is_down:
                break
        if self._tracker.is_down:
            self._pause()  # nothing more is read: what waits is on disk, so memory does not grow with an outage
        elif ending is None:
            self._news.wait(timeout=SEND_EVERY_S)
        elif self._tracker.close(ending):
            self._offset = self._outbox.size
            self._store_sent(closed=ending)
            self._done.set()
            return
        else:
            self._news.wait(timeout=0.2)
        if not self._abandoned:
            self._tracker.flush()
            self._keep()

    def _pause(self) -> None:
        """Wait until the store may be tried again: sooner once the command is only waiting for it."""
        since_s = time.monotonic()
        while self._tracker.is_down and not self._abandoned:
            if self._ending is not None and time.monotonic() >= since_s + RETRY_S:
                self._tracker.end_pause()
            else:
                time.sleep(0.1)

    def _keep(self) -> None:
        """Move the mark forward when the tracker holds nothing back."""
        if self._read_until > self._offset and not self._tracker.is_waiting:
            self._offset = self._read_until
            self._store_sent()

    def _store_sent(self, closed: Status | None = None) -> None:
        if self._abandoned:
            return  # another thread may have the run by now
        # A full disk does not matter here: the next process sends these again, and MLflow keeps equal points once.
        with contextlib.suppress(OSError):
            self._outbox.keep(Sent(run_id=str(self.run_id), offset=self._offset, closed=closed))
