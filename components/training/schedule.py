"""The schedule of a stream: which rows are learned at each position and in how many updates, as the method asks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from components.core.errors import ConfigError
from components.data.rows import Split
from components.data.streams import stored_rows
from components.data.tasks import Task, TaskStream
from components.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class ScheduledTask:
    """One position of the stream. Its splits are read as one set, shuffled together."""

    task: Task
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
    """One entry per task, in stream order; raises `ConfigError` for a task with too few rows.

    Replay buffers are drawn and written here, on the driver: every node must see the data folder.
    """
    method, training = config.method, config.training
    for task in stream.tasks:
        _require_rows(config, task)
    budgets = [training.num_updates(task.train.num_rows) if method.is_trainable else 0 for task in stream.tasks]
    for task, updates in zip(stream.tasks, budgets, strict=True):
        if updates < 1 and method.is_trainable:
            raise ConfigError(
                f"task {task.name} has fewer training rows than training.global_batch_size "
                f"{training.global_batch_size}; lower it or raise training.epochs."
            )
    if method.data_scope == "union":
        *early, last = stream.tasks
        unlearned = [ScheduledTask(task=task, splits=(task.train,), num_updates=0, scored=False) for task in early]
        union = tuple(task.train for task in stream.tasks)
        return (*unlearned, ScheduledTask(task=last, splits=union, num_updates=sum(budgets)))
    schedule: list[ScheduledTask] = []
    stored: list[Split] = []
    for index, (task, updates) in enumerate(zip(stream.tasks, budgets, strict=True)):
        splits = (task.train, *stored)
        if stored:
            updates = training.num_updates(sum(split.num_rows for split in splits))
        idle = method.data_scope == "first" and index > 0
        schedule.append(ScheduledTask(task=task, splits=splits, num_updates=0 if idle else updates))
        if method.stored_samples and index + 1 < len(stream.tasks):
            stored.append(stored_rows(config.stream, task.train, method.stored_samples, seed=config.seed))
    return tuple(schedule)


def _require_rows(config: RunConfig, task: Task) -> None:
    """Raise `ConfigError` for a task that cannot be learned or asked about, before anything starts."""
    cut = " after those that are too long were left out" if config.backbone.too_long == "skip" else ""
    rows, workers = task.train.num_rows, config.cluster.num_workers
    advice = "give it some, or leave it out of the stream"
    if config.method.is_trainable and not rows:
        raise ConfigError(f"task {task.name} has no training rows; {advice}.")
    if config.method.is_trainable and rows < workers:
        raise ConfigError(
            f"task {task.name} has {rows} training rows{cut}, fewer than cluster.num_workers {workers}, so a worker "
            "would see none; lower cluster.num_workers or give the task more rows."
        )
    if not task.test.num_rows:
        raise ConfigError(f"task {task.name} has no {task.scored_on} rows, so it has no score; {advice}.")


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
