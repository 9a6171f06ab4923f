"""Holds a run to its budget for forgetting: which checkpoint is the last one, and whether the run may go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from components.core.errors import BudgetExceeded
from components.core.files import move_folder, write_json
from components.core.location import Location, Place
from components.core.lock import sole_user
from components.core.run_files import KEPT_CHECKPOINTS, REJECTED, STATE_FILE, VERDICTS_FILE
from components.evaluation.budget import Budget, Verdict, verdict
from components.evaluation.matrix import MATRIX_FILE, ScoreMatrix
from components.evaluation.matrix_rows import MatrixRow, matrix_of
from components.training.plan import Plan


def judged_row(plan: Plan, rows: Sequence[MatrixRow]) -> str | None:
    """What the budget says of the last row; None without one. What it says of all rows is written into the folder."""
    budget, matrix = plan.config.evaluation.budget, matrix_of(plan.stream.task_names, rows, points=plan.stream.points)
    found = verdict(matrix, budget)
    if found is not None and budget is not None:
        _write_verdicts(plan.run_dir, matrix, budget)
    return None if found is None else found.text()


def _write_verdicts(run_dir: Place, matrix: ScoreMatrix, budget: Budget) -> None:
    found = [verdict(matrix.at(learned), budget) for learned in range(2, matrix.num_learned + 1)]
    rows = [asdict(one) | {"exceeded": one.exceeded} for one in found if one is not None]
    write_json(run_dir / VERDICTS_FILE, {"budget": asdict(budget), "rows": rows})


def require_within_budget(plan: Plan) -> None:
    """Raise `BudgetExceeded` when the run's last row forbids another task; its checkpoint is put where it belongs.

    Rolled back, the checkpoint lies in rejected/, where nothing looks for a run's last one. Under a higher budget, or
    without one, it is put back.
    """
    budget, path = plan.config.evaluation.budget, plan.run_dir / MATRIX_FILE
    if not path.is_file() or (budget is None and not (plan.run_dir / REJECTED).is_dir()):
        return
    with sole_user(plan.run_dir, f"run {plan.run_dir.name}"):
        matrix = ScoreMatrix.read(path)
        found = verdict(matrix, budget)
        if budget is not None:
            _write_verdicts(plan.run_dir, matrix, budget)
        ends = found is not None and found.ends_the_stream
        rolled_back = ends and found is not None and found.budget.action == "rollback"
        _place(plan.run_dir, matrix, rejected=rolled_back)
    if found is not None and ends:
        raise BudgetExceeded(f"{found.text()}; {_advice(plan, matrix, found)}")


def _place(run_dir: Place, matrix: ScoreMatrix, *, rejected: bool) -> None:
    """Move the checkpoint of the matrix's last task into rejected/, or back, if it is not there yet."""
    name = f"{matrix.num_learned:02d}-{matrix.after[-1]}"
    kept, out = run_dir / KEPT_CHECKPOINTS / name, run_dir / REJECTED / name
    source, target = (kept, out) if rejected else (out, kept)
    # In a store both are there where the move was killed: it is then ended.
    if source.is_dir() and (isinstance(run_dir, Location) or not target.exists()):
        move_folder(source, target, STATE_FILE)


def _advice(plan: Plan, matrix: ScoreMatrix, found: Verdict) -> str:
    learned, num_tasks = matrix.num_learned, len(plan.stream.steps)
    last = ""
    if found.budget.action == "rollback":
        before = f"{KEPT_CHECKPOINTS}/{learned - 1:02d}-{matrix.after[-2]}"
        last = f" Its checkpoint is in {REJECTED}/, and {before} is the run's last."
    left = "nothing is left to learn" if learned == num_tasks else f"the run ends after {learned} of {num_tasks} tasks"
    return f"{left}.{last} The same command with a higher --max-forgetting accepts the task."
