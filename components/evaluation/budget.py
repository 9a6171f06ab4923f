"""A budget for forgetting: how many points a newly learned task may cost the earlier ones, and what happens above it.

Everything follows from the score matrix and the options, so a run that goes on judges its rows as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from components.evaluation.matrix import ScoreMatrix

Measured = Literal["mean", "any"]
Action = Literal["warn", "stop", "rollback"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much may be forgotten; the options are those of `EvaluationConfig`."""

    allowed: float  # points of 0..100
    measured: Measured
    action: Action


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a row of the matrix says of the budget."""

    after: str  # the task just learned
    points: float  # lost on average, or by the task that lost most
    most: str  # the task that lost most
    lost: dict[str, float]  # points by earlier task; negative: gained
    budget: Budget

    @property
    def exceeded(self) -> bool:
        """Whether more was forgotten than the budget allows."""
        return self.points > self.budget.allowed

    @property
    def ends_the_stream(self) -> bool:
        """Whether no other task may be learned after this one."""
        return self.exceeded and self.budget.action != "warn"

    def text(self) -> str:
        """The verdict as a clause."""
        by = "on average" if self.budget.measured == "mean" else f"on {self.most}"
        most = f" (most: {self.most}, {self.lost[self.most]:.2f})" if self.budget.measured == "mean" else ""
        found = f"after {self.after} the earlier tasks have lost {self.points:.2f} points {by}{most}"
        bound = "more than" if self.exceeded else "within"
        return f"{found}, {bound} the {self.budget.allowed:g} that evaluation.max-forgetting allows"


def lost_points(matrix: ScoreMatrix) -> dict[str, float]:
    """By earlier task: its best score since it was learned minus its score after the last one, in points of 0..100;
    without boundaries by task, its best score at an earlier point minus its last one.

    Tasks without both scores are left out. Where all are there, the mean is `ScoreMatrix.forgetting`.
    """
    rows = matrix.rows[matrix.has_zero_shot :]
    lost: dict[str, float] = {}
    for place, task in enumerate(matrix.earlier):
        now = rows[-1][place]
        before = [score for row in rows[matrix.since(place) - 1 : -1] if (score := row[place]) is not None]
        if now is not None and before:
            lost[task] = max(before) - now
    return lost


def verdict(matrix: ScoreMatrix, budget: Budget | None) -> Verdict | None:
    """The last row against the budget; None without a budget, and while no earlier task is scored a second time."""
    lost = lost_points(matrix)
    if budget is None or not lost:
        return None
    most = max(lost, key=lost.__getitem__)
    points = lost[most] if budget.measured == "any" else sum(lost.values()) / len(lost)
    return Verdict(after=matrix.after[-1], points=points, most=most, lost=lost, budget=budget)
