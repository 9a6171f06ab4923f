"""The rows that a worker hands over to scorers, and the state of its stream meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.training.beside import RowsBeside
from components.training.plan import Plan
from components.training.stream_state import StreamState
from components.training.watchdog import beat

if TYPE_CHECKING:
    from components.training.worker import StreamWorker


def rows_awaited(plan: Plan, state: StreamState) -> list[int]:
    """The rows that a checkpoint lacks, by the number of tasks learned before each."""
    numbers = range(state.index - state.awaited + 1, state.index + 1)
    return [number for number in numbers if not number or plan.schedule[number - 1].scored]


class AwaitedRows:
    """Called on all workers alike. `StreamState.awaited` is how many rows are missing behind those of its `rows`."""

    def __init__(self, worker: StreamWorker) -> None:
        self._worker = worker
        self._rows = RowsBeside(
            worker.plan.scorers,
            rank=worker.rank,
            bound=worker.config.evaluation.beside_rows,
            going_on=self._going_on,
        )

    def _going_on(self) -> None:
        beat()
        self._worker.scorer.require_going_on()

    @property
    def are_none(self) -> bool:
        """Whether every row that was handed over is there."""
        return self._rows.is_empty

    def hand_over(self, learned: int, *, train_s: float) -> None:
        """Have the row after `learned` tasks scored, with the suites that are due; wait while too many are awaited."""
        worker = self._worker
        if not (learned or worker.config.evaluation.zero_shot or worker.plan.suites):
            return
        while self._rows.is_full:
            self.wait()
        self._rows.hand_over(learned, train_s=train_s, rows=worker.stream_state.rows)
        if not learned:  # else the worker counts it, as it moves on to the next task
            worker.stream_state.awaited = 1

    def hand_over_again(self) -> None:
        """The same of all rows that were awaited when the run was interrupted."""
        for learned in rows_awaited(self._worker.plan, self._worker.stream_state):
            self.hand_over(learned, train_s=0.0)

    def wait(self) -> None:
        """Take over the oldest row that is awaited."""
        worker, state, found = self._worker, self._worker.stream_state, self._rows.wait()
        state.rows, state.awaited = found.rows or [], state.index - found.learned
        if self._rows.is_empty:  # behind it are tasks that no row scores
            state.rows, state.awaited = worker.plan.rows_before(state.rows, state.index + 1), 0
        worker.hold_to_budget()

    def wait_for_all(self) -> None:
        """Take over all of them."""
        while not self._rows.is_empty:
            self.wait()
