"""What the driver tells its workers, and where they start; the loop itself, worker.py, is imported by them alone."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import ray.train
from ray.util.queue import Queue

from components.core.fingerprint import require_same_code
from components.core.runtime import quick_imports
from components.data.suites.suite import Suite
from components.data.tasks import TaskStream
from components.training.config import RunConfig
from components.training.dataloader import Feed
from components.training.schedule import Lesson
from components.training.task_cache import SharedTask


@dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """Everything a worker is told: plain data, pickled by Ray to the train processes."""

    config: RunConfig
    stream: TaskStream
    lessons: tuple[Lesson, ...]  # one per task, in stream order
    suites: tuple[Suite, ...]  # scored beside the stream, never learned
    run_dir: Path
    code: str  # fingerprint of the driver's sources
    code_root: str
    mailbox: Queue | None  # events for the driver
    shared: tuple[SharedTask | None, ...] = ()  # by lesson: where other runs leave and find that task


def train_stream_per_worker(plan: WorkerPlan) -> None:
    """Entry point of a Ray Train worker."""
    require_same_code(plan.code, plan.code_root)
    feed = started_feed(plan)
    with quick_imports():
        from components.training.worker import train_stream  # imports transformers, which the driver can do without
    gc.freeze()  # collections between tasks need not look through the libraries; the model is not loaded yet

    train_stream(plan, feed)


def started_feed(plan: WorkerPlan) -> Feed:
    """This worker's feed. A new run's first task is being read already: both sides import for seconds at first."""
    context = ray.train.get_context()
    feed = Feed(plan.config, rank=context.get_world_rank(), world_size=context.get_world_size())
    first = plan.lessons[0]
    taken_over = plan.shared and plan.shared[0] is not None and plan.shared[0].found()
    if first.num_updates and not taken_over and ray.train.get_checkpoint() is None:
        feed.read_ahead(first.task.name)
    return feed
