"""The schedule of a stream: which rows are learned at each position and in how many updates, as the method asks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from components.core.errors import ConfigError
from components.data.rows import Split
from components.data.segments import Segment
from components.data.streams import segments, stored_rows
from components.data.tasks import Task, TaskStream
from components.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class ScheduledTask:
    """One position of the stream. Its splits are read as one set, shuffled together."""

    task: Task | Segment  # a segment where the stream has no boundaries between its tasks
    splits: tuple[Split, ...]
    num_updates: int  # 0: nothing is trained
    scored: bool = True  # False: the model has not changed since the last row, and no row is measured

    @property
    def num_rows(self) -> int:
        """Training rows of one pass."""
        return sum(split.num_rows for split in self.splits)

    def unseen_rows(self, global_batch_size: int) -> int:
        """Training rows that the updates never reach, under a fixed budget smaller than one pass."""
        return max(0, self.num_rows - self.num_updates * global_batch_size) if self.num_updates else 0

    def num_epochs(self, global_batch_size: int) -> int:
        """Passes over the rows that the updates need (the last one may be partial)."""
        return math.ceil(self.num_updates * global_batch_size / self.num_rows)


def plan_schedule(config: RunConfig, stream: TaskStream) -> tuple[ScheduledTask, ...]:
    """One entry per task or segment, in stream order; raises `ConfigError` for one with too few rows.

    Segments and replay buffers are drawn and written here, on the driver: every node must see the data folder.
    """
    method, training = config.method, config.training
    for task in stream.tasks:
        _require_rows(config, task)
    steps = segments(config.stream, stream) or stream.tasks
    budgets = _budgets(config, stream, steps) if method.is_trainable else [0 for _ in steps]
    for step, updates in zip(steps, budgets, strict=True):
        if method.is_trainable:
            _require_enough(config, step, updates)
    if method.data_scope == "union":
        *early, last = stream.tasks
        unlearned = [ScheduledTask(task=task, splits=(task.train,), num_updates=0, scored=False) for task in early]
        union = tuple(task.train for task in stream.tasks)
        return (*unlearned, ScheduledTask(task=last, splits=union, num_updates=sum(budgets)))
    schedule: list[ScheduledTask] = []
    stored: list[Split] = []
    for index, (step, updates) in enumerate(zip(steps, budgets, strict=True)):
        splits = (step.train, *stored)
        if stored and training.updates_per_task is None:
            updates = training.num_updates(sum(split.num_rows for split in splits))
        idle = method.data_scope == "first" and index > 0
        schedule.append(ScheduledTask(task=step, splits=splits, num_updates=0 if idle else updates))
        if method.stored_samples and index + 1 < len(steps):
            stored.append(stored_rows(config.stream, step.train, method.stored_samples, seed=config.seed))
    return tuple(schedule)


def _budgets(config: RunConfig, stream: TaskStream, steps: Sequence[Task | Segment]) -> list[int]:
    """Optimizer updates of each step.

    Of segments with a fixed number of updates per task: all that the tasks would have, evenly over the segments.
    """
    training = config.training
    if stream.mixture is None or training.updates_per_task is None:
        return [training.num_updates(step.train.num_rows) for step in steps]
    total = training.updates_per_task * len(stream.tasks)
    until = [number * total // len(steps) for number in range(len(steps) + 1)]
    return [after - before for before, after in itertools.pairwise(until)]


def _require_rows(config: RunConfig, task: Task) -> None:
    """Raise `ConfigError` for a task that cannot be learned or asked about, before anything starts."""
    advice = "give it some, or leave it out of the stream"
    if config.method.is_trainable and not task.train.num_rows:
        raise ConfigError(f"task {task.name} has no training rows; {advice}.")
    if not task.test.num_rows:
        raise ConfigError(f"task {task.name} has no {task.scored_on} rows, so it has no score; {advice}.")


def _require_enough(config: RunConfig, step: Task | Segment, updates: int) -> None:
    """Raise `ConfigError` for a task or segment whose rows fill no update, or do not reach every worker."""
    rows, workers, batch = step.train.num_rows, config.cluster.num_workers, config.training.global_batch_size
    what, more = (f"task {step.name}", "give the task more rows")
    if isinstance(step, Segment):
        what, more = step.name, "use fewer segments"
    if rows < workers:
        cut = " after those that are too long were left out" if config.backbone.too_long == "skip" else ""
        raise ConfigError(
            f"{what} has {rows} training rows{cut}, fewer than cluster.num_workers {workers}, so a worker would see "
            f"none; lower cluster.num_workers or {more}."
        )
    if updates < 1:
        raise ConfigError(
            f"{what} has too few training rows or updates for training.global_batch_size {batch}; lower it, raise "
            f"training.epochs, or {more}."
            if isinstance(step, Segment)
            else f"{what} has fewer training rows than training.global_batch_size {batch}; lower it or raise "
            "training.epochs."
        )


def require_equal_passes(config: RunConfig, schedule: Sequence[ScheduledTask]) -> None:
    """Raise `ConfigError` where a worker would wait for ever: ZeRO-3, and a vision tower that only some batches run.

    For runs without cached vision features.
    """
    training = config.training
    if training.engine != "deepspeed" or training.zero_stage != 3 or config.cluster.num_workers == 1:
        return
    for scheduled in schedule:
        if _is_mixed(scheduled.splits):
            raise ConfigError(
                f"task {scheduled.task.name} has rows with and without a picture, and under ZeRO-3 all workers must "
                "run the vision tower in the same passes; cache the features (training.cache_features auto, and a "
                "larger training.feature_cache_gb), or use ZeRO-2 or one worker."
            )


def _is_mixed(splits: Iterable[Split]) -> bool:
    """Whether training batches can hold pictures on one worker and none on another."""
    widths = [width for split in splits for width in split.column("width")]
    return any(width is None for width in widths) and any(width is not None for width in widths)
