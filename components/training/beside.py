"""Rows that are scored beside training: what a worker hands over to the scorers, and what it gets back.

A worker that has learned a task hands its row over and learns the next task. It waits only where scoring is further
behind than `evaluation.beside_rows`, and at the end. A checkpoint says how many rows are awaited
(`StreamState.awaited`), so whoever goes on from it hands them over again, or scores them in turn. What of them was
answered by then lies in the run's folder, and is not answered twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from components.core.errors import LostError
from components.evaluation.matrix_rows import MatrixRow
from components.training.ranks import of_rank_0
from components.training.stopping import StopRequested

LOOK_EVERY_S = 1.0  # while a worker waits: so soon it sees that the run is to stop

Rows = list[MatrixRow]
DoneT = TypeVar("DoneT")


@dataclass(frozen=True, kw_only=True)
class RowsSoFar:
    """All rows until the one after `learned` tasks. `rows` is None where the run was asked to stop before that."""

    learned: int
    rows: Rows | None


class RowsBeside:
    """Hands rows over, in their order, and gets them back. Every rank has one and calls it alike; rank 0 asks."""

    def __init__(self, scorers: Sequence[ActorHandle], *, rank: int, bound: int, going_on: Callable[[], None]) -> None:
        """`bound`: how many rows may be awaited while a task is learned. `going_on` raises `StopRequested` on all
        ranks where one was asked to stop, and is a sign of life.
        """
        self._scorers, self._rank, self._bound, self._going_on = scorers, rank, bound, going_on
        self._awaited: deque[tuple[int, ObjectRef[RowsSoFar] | None]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether a row has to be waited for before another one is handed over."""
        return len(self._awaited) >= self._bound

    @property
    def is_empty(self) -> bool:
        """Whether no row is awaited."""
        return not self._awaited

    def hand_over(self, learned: int, *, train_s: float, rows: Rows) -> None:
        """Have the row after `learned` tasks scored; `rows` are those that are known here, some may be awaited."""
        asked: ObjectRef[RowsSoFar] | None = None
        if self._rank == 0:
            first, *others = self._scorers
            # The scorer gets the rows before this one, and not before they are there: Ray waits for an argument.
            before = self._awaited[-1][1] if self._awaited else RowsSoFar(learned=-1, rows=rows)
            asked = first.score.remote(learned, train_s, before, others)
        self._awaited.append((learned, asked))

    def wait(self) -> RowsSoFar:
        """The rows until the oldest one that is awaited, on all ranks. Raises `StopRequested` on all of them.

        Raises `LostError` when the scorer was lost more often than it is replaced, and what scoring raised.
        """
        _, asked = self._awaited.popleft()
        while True:
            # Of all ranks together and for a moment only: a rank that waits for another one's broadcast for half an
            # hour counts as hanging.
            found = of_rank_0(None if asked is None else answer_of(asked))
            self._going_on()
            if found is not None:
                if found.rows is None:
                    raise StopRequested
                return found


def answer_of(asked: ObjectRef[DoneT]) -> DoneT | None:
    """What came of a call of a scorer; None where that is not known within a moment.

    Raises `LostError` when the scorer was lost more often than it is replaced, and what the call raised.
    """
    try:
        return ray.get(asked, timeout=LOOK_EVERY_S)
    except GetTimeoutError:
        return None
    except RayActorError as error:
        raise LostError(
            "a process that scores rows beside training (evaluation.beside) was lost more often than "
            f"cluster.max-failures allows ({_line(error)})"
        ) from error
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["it says no more"]
    return lines[0][:200].rstrip(". ")
