"""What MLflow lacks of a run that has ended, sent later from the run's own files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from components.core.errors import TrackingError
from components.core.events import EventHandler, Note, RowScored
from components.core.lock import sole_user
from components.evaluation.matrix import ScoreMatrix
from components.runs.costs import Costs
from components.runs.execute import LINK_FILE, begin_tracking
from components.tracking.outbox import EVENTS_FILE, is_recorded
from components.training.plan import Plan
from components.training.run_folder import KEPT_CHECKPOINTS, read_result


def complete_record(plan: Plan, follow: EventHandler) -> None:
    """Send what an outage left out of a finished run's MLflow record, and close its runs. Usually there is nothing.

    A store that cannot be reached is told as a warning: the run is whole without it.
    """
    if not plan.config.tracking.enabled or not (plan.run_dir / LINK_FILE).is_file() or is_recorded(plan.run_dir):
        return
    with sole_user(plan.run_dir, f"run {plan.run_dir.name}"):
        queued = (plan.run_dir / EVENTS_FILE).is_file()
        try:
            tracker = begin_tracking(plan, follow, continued=False)
        except TrackingError as error:
            follow(Note(text=f"MLflow does not have all of this run, and its record waits: {error}", warning=True))
            return
        if not queued:  # a run of an earlier version: rows that MLflow has are not sent again
            for row in rows_in(plan.run_dir):
                tracker.handle(row)
        tracker.finish("FINISHED")


def rows_in(run_dir: Path) -> Iterator[RowScored]:
    """The rows of a run's score matrices as they were told when it ran, without what only the events held."""
    result = read_result(run_dir)
    costs = {(row.tasks_learned, row.after): row for row in Costs.read(run_dir).rows}
    matrix = result.matrix
    first = 0 if matrix.has_zero_shot else 1
    for number, after in enumerate(matrix.after):
        learned = first + number
        cost = costs.get((learned, after))
        kept = next(iter(sorted((run_dir / KEPT_CHECKPOINTS).glob(f"{learned:02d}-*"))), None) if learned else None
        variants = {name: _cells(other, after) for name, other in result.variants.items()}
        yield RowScored(
            tasks_learned=learned,
            after=after,
            scores=dict(zip(matrix.tasks, matrix.rows[number], strict=True)),
            variants={name: cells for name, cells in variants.items() if any(v is not None for v in cells.values())},
            routing_accuracy=None,
            slot_usage=None,
            train_s=math.nan if cost is None else cost.train_s,
            evaluate_s=math.nan if cost is None else cost.evaluate_s,
            peak_memory_bytes=math.nan,
            checkpoint_path=None if kept is None else str(kept),
        )


def _cells(matrix: ScoreMatrix, after: str) -> dict[str, float | None]:
    """A variant's row, empty where it has none."""
    if after not in matrix.after:
        return {}
    return dict(zip(matrix.tasks, matrix.rows[matrix.after.index(after)], strict=True))
