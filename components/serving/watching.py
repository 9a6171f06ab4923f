"""Notices when a run that is being served has learned another task, or an alias names another checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from components.core.errors import LittoralError
from components.evaluation.matrix import MATRIX_FILE, ScoreMatrix
from components.serving.plan import Place
from components.serving.shelf import Shelf
from components.tracking.aliases import Registered

logger = logging.getLogger("littoral.serving")


class Watcher:
    """Looks at the run's score matrix, a small file, and at its checkpoints only when that has changed.

    A task counts when its row is scored and has stayed for a second look: a budget for forgetting that is exceeded
    takes the task's checkpoint away right after its row.
    """

    every_s = 2.0

    def __init__(self, shelf: Shelf, run: str, serving: Place) -> None:
        self._shelf, self._run, self._serving = shelf, run, serving
        self._seen: list[str] = []
        self._looked_up = False

    def newer(self) -> Place | None:
        """The newest task's checkpoint, once, if it is newer than what was served."""
        try:
            rows = ScoreMatrix.read(self._shelf.storage / self._run / MATRIX_FILE).after
        except (LittoralError, OSError):
            return None  # not there yet, or being replaced
        if rows != self._seen:
            self._seen, self._looked_up = [*rows], False
            return None
        if self._looked_up or not rows:
            return None
        self._looked_up = True
        try:
            place = self._shelf.newest(self._run)
        except (LittoralError, OSError) as error:
            logger.warning("the run's newest checkpoint cannot be read: %s", error)
            return None
        if place.number <= self._serving.number or place.task not in rows:
            return None
        self._serving = place
        return place


class Follower:
    """Follows an alias of MLflow's registry: what it names answers, an older version too, when it is moved back."""

    every_s = 3.0

    def __init__(self, shelf: Shelf, named: Callable[[], Registered | None], serving: Registered) -> None:
        """`named` asks what the alias names now; it may raise `LittoralError`."""
        self._shelf, self._named = shelf, named
        self._serving, self._due, self._said = serving, 0.0, ""

    def newer(self) -> Place | None:
        """The checkpoint that the alias names, once, if it is another one than was served."""
        if time.monotonic() < self._due:
            return None
        self._due = time.monotonic() + self.every_s
        try:
            found = self._named()
            if found is None or found == self._serving:
                self._said = ""
                return None
            place = self._shelf.registered(found)
        except (LittoralError, OSError) as error:  # tried again: a store may be away, or a file system behind
            self._say(f"answers go on from {self._serving}: {error}")
            return None
        self._serving = found
        return place

    def _say(self, text: str) -> None:
        """Once, until something else is to be said."""
        if text != self._said:
            self._said = text
            logger.warning("%s", text)
