"""What the driver tells its workers, and where they start; the loop itself, worker.py, is imported by them alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ray.util.queue import Queue

from components.data.suites.suite import Suite
from components.data.tasks import TaskStream
from components.fingerprint import require_same_code
from components.training.config import RunConfig
from components.training.lessons import Lesson
from components.training.shared_tasks import SharedTask


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
    from components.training.worker import train_stream  # imports transformers, which the driver can do without

    train_stream(plan)
