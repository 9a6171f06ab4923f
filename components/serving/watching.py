"""Notices when a run that is being served has learned another task."""

from __future__ import annotations

import logging

from components.core.errors import LittoralError
from components.evaluation.matrix import MATRIX_FILE, ScoreMatrix
from components.serving.plan import Place
from components.serving.shelf import Shelf

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
