"""A circuit breaker for a store that may fail for a while: retry, then warn once, pause, and let the caller go on."""

from __future__ import annotations

import time
from collections.abc import Callable

import tenacity

from components.core.errors import TrackingError
from components.core.events import Note

ATTEMPTS = 3  # per call, about 1 s and 2 s apart
PAUSE_S = 60.0  # how long the breaker stays open after a failure


class StoreError(TrackingError):
    """A call to the store failed; `transient` when trying again may help."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class CircuitBreaker:
    """Runs store calls. A failure never raises: `attempt` returns False and `on_note` is warned once per kind."""

    def __init__(self, on_note: Callable[[Note], None] | None, *, wait_s: float = 1.0) -> None:
        self._on_note, self._wait_s = on_note, wait_s
        self._paused_until_s = 0.0
        self._warned: set[str] = set()

    def attempt(self, what: str, call: Callable[[], None]) -> bool:
        """True if `call` succeeded; False if it failed or the breaker is open."""
        if time.monotonic() < self._paused_until_s:
            return False
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_exponential(multiplier=self._wait_s),
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, StoreError) and error.transient),
            reraise=True,
        )
        try:
            retrying(call)
        except TrackingError as error:
            self._paused_until_s = time.monotonic() + PAUSE_S
            if what not in self._warned:
                self._warned.add(what)
                self.warn(f"MLflow did not record {what} ({error}); the run goes on and this is tried again later.")
            return False
        return True

    def end_pause(self) -> None:
        """Close the breaker: the next call is tried at once."""
        self._paused_until_s = 0.0

    def warn(self, text: str) -> None:
        if self._on_note is not None:
            self._on_note(Note(text=text, warning=True))
