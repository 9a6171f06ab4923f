"""The rows of a run's score matrix as events, read back from its folder."""

from __future__ import annotations

import math
from collections.abc import Iterator

from components.core.events import RowScored
from components.core.location import Place
from components.core.run_files import KEPT_CHECKPOINTS
from components.evaluation.matrix import ScoreMatrix
from components.runs.costs import Costs
from components.training.lineage import read_origin
from components.training.run_folder import read_result


def rows_in(run_dir: Place) -> Iterator[RowScored]:
    """The rows of a run's score matrices as they were told when it ran, without what only the events held.

    Rows that it took over from another run name no checkpoint: what was learned there is recorded there.
    """
    origin = read_origin(run_dir)
    taken = 0 if origin is None else origin.rows_of_tasks
    result = read_result(run_dir)
    costs = {(row.tasks_learned, row.after): row for row in Costs.read(run_dir).rows}
    matrix = result.matrix
    first = 0 if matrix.has_zero_shot else 1
    for number, after in enumerate(matrix.after):
        learned = first + number
        cost = costs.get((learned, after))
        kept = next(iter(sorted((run_dir / KEPT_CHECKPOINTS).glob(f"{learned:02d}-*"), key=str)), None)
        variants = {name: _cells(other, after) for name, other in result.variants.items()}
        yield RowScored(
            tasks_learned=learned,
            after=after,
            points=matrix.points,
            scores=dict(zip(matrix.tasks, matrix.rows[number], strict=True)),
            variants={name: cells for name, cells in variants.items() if any(v is not None for v in cells.values())},
            routing_accuracy=None,
            slot_usage=None,
            train_s=math.nan if cost is None else cost.train_s,
            evaluate_s=math.nan if cost is None else cost.evaluate_s,
            replies=0 if cost is None else cost.replies,
            kept_replies=0 if cost is None else cost.kept_replies,
            peak_memory_bytes=math.nan,
            checkpoint_path=None if kept is None or learned <= taken else str(kept),
        )


def _cells(matrix: ScoreMatrix, after: str) -> dict[str, float | None]:
    """A variant's row, empty where it has none."""
    if after not in matrix.after:
        return {}
    return dict(zip(matrix.tasks, matrix.rows[matrix.after.index(after)], strict=True))
