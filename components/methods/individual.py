"""Individual learning: one adapter per task; the task is known at test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from components.adapters.mixing import Scale
from components.methods.base import Forgotten, Json, MethodState, Selection
from components.methods.common.branches import TaskBranches
from components.methods.common.unlearning import branch_forgotten
from components.methods.options.individual import IndividualConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone


class Individual(TaskBranches[IndividualConfig]):
    """Individual learning: what each task reaches alone.

    Paper: none; reported by MCITlib and others as "Individual".
    Idea: tasks share nothing, and an oracle picks the adapter at test. No forgetting, no transfer.
    Objective: the language-model loss of the task at hand, W = W0 + (alpha / R) up_t down_t.
    Overrides: serve, routing, forget_task; `TaskBranches` does the rest.
    Carried between tasks: every task's adapter, frozen. Grows by one adapter a task.
    Differs: a bound, not a continual method: it needs the task's identity (`needs_task_id`).
    """

    rows_leave = rows_join = True

    def routing(self) -> dict[str, Json]:
        return {"rule": "Whoever asks says which task a row belongs to."}

    def forget_task(self, state: MethodState, task: str) -> Forgotten:
        return Forgotten(state=branch_forgotten(state, task))

    def serve(self, model: Backbone, batch: Batch) -> tuple[Mapping[str, Scale], Selection]:
        assert batch.oracle_task is not None, "individual learning needs the task of every batch"
        if batch.oracle_task not in self.tasks:  # a task that was not learned yet is answered by the backbone
            return {}, Selection()
        return {str(self.tasks.index(batch.oracle_task)): self.scale}, Selection()
