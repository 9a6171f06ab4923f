"""Rows and suites of earlier tasks, answered by the method as it was then: those whose predictions were damaged, and
those that were awaited from a scorer when their run was interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.core.checkpoint import Checkpoint, read_checkpoint
from components.core.events import Note
from components.core.run_files import KEPT_CHECKPOINTS
from components.models.backbone import load_backbone
from components.training.awaiting import rows_awaited
from components.training.checkpointing import method_state
from components.training.row_files import write_decisions, write_matrix

if TYPE_CHECKING:
    from components.training.worker import StreamWorker


def answer_again(worker: StreamWorker, now: Checkpoint) -> None:
    """Do what the plan says, each on a fresh backbone: a method cannot be taken off again. Then go on from `now`."""
    plan, rows = worker.plan, worker.stream_state.rows
    for learned in sorted({*plan.again.rows, *(number for number, _ in plan.again.suites)}):
        _attach(worker, learned)
        before = learned + plan.config.evaluation.zero_shot - 1  # rows before this one
        if learned in plan.again.rows:
            row = worker.scorer.score(rows[:before], learned=learned, train_s=0.0, again=True)
            if worker.rank == 0 and row != rows[before]:
                worker.send(Note(text=f"the row after {row.after} has other scores than it had", warning=True))
            rows[before] = row
        suites = [name for number, name in plan.again.suites if number == learned]
        worker.suites.score_again(suites, rows[: before + 1], learned=learned)
    worker.attach(load_backbone(plan.config.backbone, worker.device), method_state(now))
    if worker.rank == 0 and rows:
        write_matrix(plan, rows)
        write_decisions(plan, rows, worker.method)


def score_awaited(worker: StreamWorker, now: Checkpoint) -> None:
    """Score the rows that `now` lacks, with their suites, each on a fresh backbone. Then go on from there."""
    plan, state = worker.plan, worker.stream_state
    for learned in rows_awaited(plan, state):
        _attach(worker, learned)
        if learned or plan.config.evaluation.zero_shot:
            before = plan.rows_before(state.rows, learned)
            state.rows = [*before, worker.scorer.score(before, learned=learned, train_s=0.0)]
        worker.suites.score(state.rows, learned=learned)
    state.rows, state.awaited = plan.rows_before(state.rows, state.index + 1), 0
    worker.attach(load_backbone(plan.config.backbone, worker.device), method_state(now))


def _attach(worker: StreamWorker, learned: int) -> None:
    """The method as it was after `learned` tasks."""
    plan, state = worker.plan, None
    if learned:
        kept = plan.run_dir / KEPT_CHECKPOINTS / f"{learned:02d}-{plan.after(learned)}"
        state = method_state(worker.checkpointer.of_this_run(read_checkpoint(kept)))
    worker.attach(load_backbone(plan.config.backbone, worker.device), state)
