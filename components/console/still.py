"""A line now and then while nothing else is said: who reads a log sees that the run lives, and what it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from components.console.eta import duration_text

EVERY_S = 50.0  # a line a minute at least, though its thread may come late
_LOOK_S = 1.0


class Still:
    """Repeats what was said to be going on when nothing was printed for `EVERY_S`. `clock` gives seconds."""

    def __init__(self, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._doing, self._since_s, self._printed_s = "", 0.0, clock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def doing(self, text: str) -> None:
        """This goes on from now."""
        self._doing, self._since_s = text, self._clock()

    def printed(self) -> None:
        """A line was printed."""
        self._printed_s = self._clock()

    def look(self) -> None:
        """Print what goes on, if it is time to."""
        now_s = self._clock()
        if self._doing and now_s - self._printed_s >= EVERY_S:
            self._printed_s = now_s
            self._say(f"still at it, for {duration_text(now_s - self._since_s)}: {self._doing}")

    def start(self) -> None:
        """Look every second from now on, in a thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="still at it", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Say nothing any more. Safe to call twice."""
        self._done.set()
        if self._thread is not None:
            self._thread.join(_LOOK_S)  # a line that it has begun is still printed

    def _watch(self) -> None:
        while not self._done.wait(_LOOK_S):
            self.look()
