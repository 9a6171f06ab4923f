"""What the driver tells its workers, and where they start; the loop itself, worker.py, is imported by them alone."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import ray.train
from ray.util.queue import Queue

from components.core.fingerprint import require_same_code
from components.core.runtime import fast_imports
from components.data.suite import Suite
from components.data.tasks import TaskStream
from components.training.config import RunConfig
from components.training.dataloader import TaskDataLoader
from components.training.schedule import ScheduledTask
from components.training.task_cache import CachedTask


@dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """Everything a worker is told: plain data, pickled by Ray to the train processes."""

    config: RunConfig
    stream: TaskStream
    schedule: tuple[ScheduledTask, ...]  # one per task, in stream order
    suites: tuple[Suite, ...]  # scored beside the stream, never learned
    run_dir: Path
    code: str  # fingerprint of the driver's sources
    code_root: str
    event_queue: Queue | None  # events for the driver
    shared: tuple[CachedTask | None, ...] = ()  # by scheduled task: where other runs put and find it


def train_stream_per_worker(plan: WorkerPlan) -> None:
    """Entry point of a Ray Train worker."""
    require_same_code(plan.code, plan.code_root)
    loader = started_loader(plan)
    with fast_imports():
        from components.training.worker import train_stream  # imports transformers, which the driver can do without
    gc.freeze()  # collections between tasks need not look through the libraries; the model is not loaded yet

    train_stream(plan, loader)


def started_loader(plan: WorkerPlan) -> TaskDataLoader:
    """This worker's data loader. A new run prefetches its first task while this process is still importing."""
    context = ray.train.get_context()
    loader = TaskDataLoader(plan.config, rank=context.get_world_rank(), world_size=context.get_world_size())
    first = plan.schedule[0]
    reused = plan.shared and plan.shared[0] is not None and plan.shared[0].hit()
    if first.num_updates and not reused and ray.train.get_checkpoint() is None:
        loader.read_ahead(first.task.name)
    return loader
