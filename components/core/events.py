"""Events of a running stream. Rank 0 sends them; on the driver the console, the costs and MLflow consume them.

Plain frozen dataclasses: they cross process borders by cloudpickle inside one Ray cluster and are never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TaskStarted:
    index: int  # 0-based
    task: str
    num_samples: int  # training rows
    num_updates: int  # optimizer updates planned for this task
    trainable_parameters: int
    total_parameters: int
    start_s: float  # seconds from the previous task's end (or worker start) to the first step being ready
    resumed_at: int = 0  # update from which a resumed task goes on


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """One optimizer update (values averaged over workers)."""

    index: int
    task: str
    update: int  # 1-based within the task
    num_updates: int
    loss: float
    parts: dict[str, float]
    learning_rate: float
    grad_norm: float
    samples_per_s: float
    data_wait_s: float  # seconds this update waited for data


@dataclass(frozen=True, kw_only=True)
class UpdateSkipped:
    """An update whose loss or gradient was not finite; it has changed nothing."""

    index: int
    task: str
    update: int  # 1-based within the task
    cause: str  # "its loss is nan"
    skipped: int  # of the task's updates so far, this one counted
    allowed: int  # one more ends the run


@dataclass(frozen=True, kw_only=True)
class EvaluationProgress:
    after: str
    task: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class RowScored:
    """A finished row of the score matrix: after `after`, over every task evaluated."""

    tasks_learned: int  # 0 = zero-shot
    after: str  # "zero-shot" or the task just learned
    points: list[str] | None = None  # of a stream without boundaries: what its rows are named after
    scores: dict[str, float | None]  # 0..100; every task of the stream, None where not evaluated
    variants: dict[str, dict[str, float | None]] = field(default_factory=dict)  # see evaluation/matrix.py
    well_formed: dict[str, float] | None = None  # 0..1 per evaluated task: replies in the form that was asked for
    routing_accuracy: dict[str, float] | None  # 0..1 per evaluated task, for routed methods
    slot_usage: dict[str, list[int]] | None  # per evaluated task: how often each slot, expert or group served
    decisions: dict[str, Any] | None = None  # decisions.json so far; None where nothing is decided
    budget: str | None = None  # what the budget for forgetting says of the row; None without one
    train_s: float
    evaluate_s: float
    replies: int = 0  # rows scored
    kept_replies: int = 0  # of them, those whose reply was kept from before
    peak_memory_bytes: float  # NaN where it is not known any more
    checkpoint_path: str | None  # filled for rows after a learned task
    samples: list[dict[str, str | float]] = field(default_factory=list)  # a few predictions to look at


@dataclass(frozen=True, kw_only=True)
class SuitesScored:
    """The general suites after so many tasks; sent again when a resumed stream passes this point."""

    tasks_learned: int  # 0 = before any training
    after: str  # "zero-shot" or the task just learned
    figures: dict[str, dict[str, float]]  # by suite; "score" is 0..100
    retention: dict[str, float]  # see evaluation/general.py; empty before the first task
    evaluate_s: float


@dataclass(frozen=True, kw_only=True)
class PhaseBegan:
    """What the driver does by itself, before and after the workers are at work."""

    phase: str  # "starting the workers"


@dataclass(frozen=True, kw_only=True)
class Note:
    """A message for the user, or a warning."""

    text: str
    warning: bool = False


Event = TaskStarted | StepDone | UpdateSkipped | EvaluationProgress | RowScored | SuitesScored | PhaseBegan | Note
EventHandler = Callable[[Event], None]
