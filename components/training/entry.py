"""Entry point of a worker. Light on purpose: the loop itself (worker.py) imports transformers, the driver need not."""

from __future__ import annotations

import gc
import traceback

import ray.train
from ray import cloudpickle

from components.core.fingerprint import require_same_code
from components.core.runtime import fast_imports
from components.training.dataloader import TaskDataLoader
from components.training.plan import WorkerPlan
from components.training.watchdog import watchdog


def train_stream_per_worker(plan: WorkerPlan) -> None:
    """What Ray Train calls in every worker process."""
    rank = ray.train.get_context().get_world_rank()
    try:
        with watchdog(plan.run_dir, rank, plan.config.cluster.hang_minutes):
            _train_stream(plan)
    except Exception as error:
        told = travelling(error)
        told.add_note(traceback.format_exc())  # Ray Train hands the exception on without its traceback
        if told is not error:
            raise told from error
        raise


def travelling(error: Exception) -> Exception:
    """The same, or what it says: of one that no other process can read Ray Train makes a worker that was lost."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))  # pyright: ignore[reportPrivateImportUsage]
    except Exception:  # noqa: BLE001 (whatever its class does to be pickled)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _train_stream(plan: WorkerPlan) -> None:
    require_same_code(plan.code, plan.code_root)
    loader = started_loader(plan)
    with fast_imports():
        from components.training.worker import train_stream
    # What is imported by now lives as long as the process: later collections need not look through it. The model is
    # not loaded yet, so its memory stays collectable.
    gc.freeze()

    train_stream(plan, loader)


def started_loader(plan: WorkerPlan) -> TaskDataLoader:
    """This worker's data loader. For a new run it prefetches the first task while this process is still importing."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    loader = TaskDataLoader(plan.config, plan.schedule, plan.cache, rank=rank, world_size=world_size)
    first = plan.schedule[0]
    reused = plan.cached and plan.cached[0] is not None and plan.cached[0].hit()
    if first.num_updates and not reused and ray.train.get_checkpoint() is None:
        loader.read_ahead(first.task.name)
    return loader
