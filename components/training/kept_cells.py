"""Scored cells that are kept as soon as they are whole, so that a run which ends early answers none of them twice.

A cell is the replies to one task's, or suite's, rows after one task. While a row of the matrix is scored, its cells lie
in `predictions/.NN-AFTER/`; then the row's own file takes their place. Each of these files says what its cells were
made from: the method's state, the rows, and how they were asked. A cell that was made from anything else is not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Sequence

from components.adapters.serving import tensors_digest
from components.core.errors import DataError
from components.core.events import Event, Note
from components.core.files import remove_folder
from components.core.location import Place
from components.data.suite import Suite
from components.data.tasks import Task
from components.evaluation.matrix import when
from components.evaluation.predictions import (
    PREDICTIONS_FOLDER,
    Prediction,
    made_of,
    predictions_file,
    read_predictions,
    write_predictions,
)
from components.methods.base import MethodState


def state_digest(state: MethodState) -> str:
    """SHA-256 of a method's tensors, their names and types, and of its structure."""
    structure = json.dumps(state.structure, sort_keys=True)
    return hashlib.sha256(f"{structure} {tensors_digest(state.tensors)}".encode()).hexdigest()


class KeptCells:
    """The cells after `learned` tasks, on rank 0. `state` is the digest of what answers: model and method."""

    def __init__(self, run_dir: Place, learned: int, after: str, *, state: str) -> None:
        self._run_dir, self._learned, self._after, self._state = run_dir, learned, after, state
        self._row_file = predictions_file(run_dir, learned, after)
        self._folder = run_dir / PREDICTIONS_FOLDER / f".{self._row_file.stem}"
        self._made_of: dict[str, str] = {}  # by task, the cells of this row so far
        self._taken: list[str] = []  # tasks and suites whose cells were there

    def take(self, task: Task | Suite, num_rows: int, oracle_task: str | None) -> list[Prediction] | None:
        """The cell, if it is there whole and was made from the same; None where it is to be answered."""
        wanted = self._from(task, num_rows, oracle_task)
        for path in (self._file(task), self._row_file):
            if made_of(path).get(task.name) != wanted:
                continue
            try:
                found = [one for one in read_predictions(path) if one.task == task.name]
            except DataError:  # damaged: it is answered again
                continue
            if len(found) == num_rows:
                self._taken.append(task.name)
                self._made_of[task.name] = wanted
                return found
        return None

    def put(self, task: Task | Suite, oracle_task: str | None, cell: Sequence[Prediction]) -> None:
        """Keep a cell that was just answered."""
        self._made_of[task.name] = self._from(task, len(cell), oracle_task)
        write_predictions(self._file(task), cell, {task.name: self._made_of[task.name]})

    def join(self, table: Sequence[Prediction]) -> None:
        """Write the row's file, with the cells of all its tasks in `table`. It takes the place of the single ones."""
        write_predictions(self._row_file, table, self._made_of)
        remove_folder(self._folder)

    def tell(self, send: Callable[[Event], None], due: int, *, apart: Container[str] = ()) -> None:
        """Send a note on what is not answered again, if anything; `due`: how many tasks or suites there are.

        `apart`: those that another process has just answered.
        """
        taken = [name for name in self._taken if name not in apart]
        if taken:
            what = taken[0] if due == 1 else f"{len(taken)} of {due}"
            send(Note(text=f"scoring {when(self._after)}: {what} had been scored before this start"))

    def _file(self, task: Task | Suite) -> Place:
        if isinstance(task, Suite):
            return predictions_file(self._run_dir, self._learned, self._after, suite=task.name)
        return self._folder / f"{task.name}.parquet"

    def _from(self, task: Task | Suite, num_rows: int, oracle_task: str | None) -> str:
        """The digest of what a cell is made from. Options that it does not name are the whole run's: config.json."""
        asked = [self._state, task.test.digest, num_rows, task.max_new_tokens, oracle_task]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
