"""A store that may fail: its errors as one kind, and a circuit breaker that retries, warns once, pauses and goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tenacity

from components.core.errors import TrackingError
from components.core.events import Note
from components.core.secrets import without_secrets

ATTEMPTS = 3  # per call, about 1 s and 2 s apart
PAUSE_S = 60.0  # how long the breaker stays open after a failure
MLFLOW_SWITCHES = {  # defaults of MLflow's own; what a user has set stays
    "MLFLOW_DISABLE_TELEMETRY": "true",  # a run reports to its own store and to nobody else
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the breaker retries by itself and tells the user
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_FLUSHED = (  # SQLAlchemy's remark before what went wrong
    "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block if this flush is "
    "occurring prematurely)"
)
_FULL = ("database or disk is full", "No space left on device", "Disk quota exceeded")  # as SQLite and systems say it
_TRANSIENT = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ABORTED"}
_REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}  # of this content, now and later


class StoreError(TrackingError):
    """A call to the store failed.

    `transient` when trying again soon may help, `refused` when it never will: what was sent is not accepted.
    """

    def __init__(self, message: str, *, transient: bool, refused: bool = False) -> None:
        super().__init__(message)
        self.transient, self.refused = transient, refused


@contextmanager
def translated() -> Iterator[None]:
    """Turn errors of MLflow, its HTTP client and the disk into a one-line `StoreError` without credentials."""
    for name, value in MLFLOW_SWITCHES.items():  # before MLflow is imported, which reads them
        os.environ.setdefault(name, value)
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, CommandError, OSError, ImportError, json.JSONDecodeError) as error:
        lines = (without_secrets(str(error)).replace(_FLUSHED, "").strip() or repr(error)).splitlines()
        reason = lines[0][:300].rstrip(". ")  # not its stack
        if "Max retries exceeded" in reason or "Connection refused" in reason:
            reason = "nothing answers there"
        code = getattr(error, "error_code", None)
        transient = isinstance(error, OSError) or code in _TRANSIENT
        raise StoreError(reason, transient=transient, refused=code in _REFUSED) from error


@contextmanager
def told(what: str, advice: str) -> Iterator[None]:
    """The same as a `TrackingError` for people: `what` went wrong, why, and what to do."""
    try:
        with translated():
            yield
    except StoreError as error:
        raise TrackingError(f"{what} ({error}); {advice}.") from error


def is_transient(error: TrackingError) -> bool:
    """Whether what `told` raised may be over soon: a store that does not answer, not one that says no."""
    return isinstance(error.__cause__, StoreError) and error.__cause__.transient


class CircuitBreaker:
    """Runs store calls. A failure never raises: `attempt` returns False and `on_note` is warned once per kind."""

    def __init__(self, on_note: Callable[[Note], None] | None) -> None:
        self._on_note = on_note
        self._paused_until_s = 0.0
        self._warned: set[str] = set()
        self.taken = 0  # calls that succeeded
        self.refused = False  # whether the last attempt failed for good
        self.full = False  # whether the last failure was for want of room, which nobody but a person makes

    @property
    def is_open(self) -> bool:
        """Whether calls fail at once, since one failed a moment ago."""
        return time.monotonic() < self._paused_until_s

    def attempt(self, what: str, call: Callable[..., None], *arguments: object) -> bool:
        """True if `call` succeeded; False if it failed or the breaker is open.

        Where trying again cannot help, `refused` is True afterwards, and the next call is tried at once.
        """
        self.refused = False
        if self.is_open:
            return False
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_exponential(multiplier=1),
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, StoreError) and error.transient),
            reraise=True,
        )
        try:
            retrying(translated()(call), *arguments)
        except StoreError as error:
            self.full = any(words in str(error) for words in _FULL)
            if error.refused:
                self._refuse(what, str(error))
                return False
            self._paused_until_s = time.monotonic() + PAUSE_S
            if what not in self._warned:
                self._warned.add(what)
                self.warn(f"MLflow did not record {what} ({error}); the run goes on and this is tried again later.")
            return False
        except TrackingError as error:
            self._refuse(what, str(error))
            return False
        except Exception as error:  # noqa: BLE001 (whatever one event does, the others are still recorded)
            self._refuse(what, f"{type(error).__name__}: {without_secrets(str(error))[:300]}")
            return False
        self.taken += 1
        return True

    def end_pause(self) -> None:
        """Close the breaker: the next call is tried at once."""
        self._paused_until_s = 0.0

    def _refuse(self, what: str, reason: str) -> None:
        self.refused = True
        if f"refused {what}" not in self._warned:
            self._warned.add(f"refused {what}")
            self.warn(f"MLflow does not take {what} ({reason}); the run goes on, and its own files have it.")

    def warn(self, text: str) -> None:
        if self._on_note is not None:
            self._on_note(Note(text=text, warning=True))
