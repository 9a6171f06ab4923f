"""A process that scores rows beside training: an actor of Ray's that the driver places, and the workers call.

It answers what all workers would answer, part by part in the same batches (`ranks.Shares`), with as many threads, so
replies have the same bits. It is the only process of the run that writes predictions and matrices meanwhile. Several of
them share a row by its tasks: the first one scores rows, the others answer cells for it and leave them in the run's
folder. An actor that is lost is started again by Ray, which repeats the call; cells that were whole by then are kept.

Light on purpose: what answers is imported with the first call, which the driver does not wait for.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import ray
from ray.actor import ActorHandle

from components.core.events import Event, Note
from components.core.fingerprint import require_same_code
from components.core.runtime import fast_imports
from components.training.beside import RowsSoFar, answer_of
from components.training.plan import WorkerPlan
from components.training.stopping import StopRequested
from components.training.watchdog import beat, watchdog

if TYPE_CHECKING:  # imports transformers
    from components.training.scoring import Answering

DoneT = TypeVar("DoneT")


class Scorer:
    """One of the processes; `number` counts them from 0."""

    def __init__(self, plan: WorkerPlan, number: int) -> None:
        require_same_code(plan.code, plan.code_root)
        self.plan, self.number = plan, number
        self._answering: Answering | None = None
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._send(Note(text="a process that scores rows was lost and is replaced; whole cells are kept"))

    def score(self, learned: int, train_s: float, before: RowsSoFar, others: Sequence[ActorHandle]) -> RowsSoFar:
        """Score the row after `learned` tasks and the suites that are due then; `before` has the rows before it.

        `others` are the processes that help. `train_s`: seconds that the task took to learn, for the row's event.
        """

        def scored(answering: Answering) -> RowsSoFar:
            if before.rows is None:
                raise StopRequested
            processes = 1 + len(others)
            asked = [other.help.remote(learned, processes) for other in others]
            answering.begin(learned)
            answered = answering.answer(self._own(learned, processes)) if asked else {}
            while asked:
                found = answer_of(asked[0])
                beat()
                answering.require_going_on()
                if found is not None:
                    answered |= found
                    asked.pop(0)
            rows = self.plan.rows_before(before.rows, learned)
            return RowsSoFar(learned=learned, rows=answering.score(rows, train_s=train_s, answered=answered))

        return self._done(scored) or RowsSoFar(learned=learned, rows=None)

    def help(self, learned: int, processes: int) -> dict[str, int]:
        """Answer this process's tasks of that row; by task, how many replies were kept. Less when asked to stop."""

        def helped(answering: Answering) -> dict[str, int]:
            answering.begin(learned)
            return answering.answer(self._own(learned, processes))

        return self._done(helped) or {}

    def _own(self, learned: int, processes: int) -> list[str]:
        """This process's part of a row's tasks. Later ones, which others share, are longest unanswered."""
        return [task.name for task in self.plan.due(learned)][self.number :: processes]

    def _done(self, work: Callable[[Answering], DoneT]) -> DoneT | None:
        """What comes of it, or None where the run is asked to stop."""
        plan, cluster = self.plan, self.plan.config.cluster
        try:
            with watchdog(plan.run_dir, cluster.num_workers + self.number, cluster.hang_minutes):
                if self._answering is None:
                    with fast_imports():
                        from components.training.scoring import Answering
                    gc.freeze()  # as in a worker: what is imported lives as long as the process
                    self._answering = Answering(plan, self._send)
                return work(self._answering)
        except StopRequested:
            return None
        except Exception as error:
            error.add_note(traceback.format_exc())  # who called gets the exception without its traceback
            raise

    def _send(self, event: Event) -> None:
        beat()
        if self.plan.event_queue is not None:
            self.plan.event_queue.put(event)
