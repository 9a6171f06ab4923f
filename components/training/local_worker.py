"""A run's only worker where a command has started Ray itself: one process, without Ray Train's controller and helpers.

There is no other worker to agree with and no other node to move to, so nothing is lost with them: the driver replaces a
worker that dies, as the controller would (`driver.fit`), and its checkpoints are listed alike (local_training.py). The
process is started first of all, and imports while the driver is still preparing; before it trains it computes what the
vision cache lacks. A sweep's trials have it one after another.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.actor import ActorHandle
from ray.data import Dataset
from ray.train.v2._internal.execution.train_fn_utils import set_train_fn_utils

from components.core.ray_session import is_own_ray
from components.core.runtime import fast_imports
from components.models.config import BackboneConfig
from components.training.config import RunConfig
from components.training.deepspeed_import import import_deepspeed
from components.training.entry import train_stream_per_worker
from components.training.feature_writing import ShardWork, compute_features
from components.training.local_training import LocalTraining, join_alone
from components.training.plan import WorkerPlan
from components.training.vision_cache import VisionCache


class LocalWorker:
    """The process, an actor of Ray's."""

    def __init__(self, engine: str, *, on_gpu: bool) -> None:
        os.environ["DS_ACCELERATOR"] = "cuda" if on_gpu else "cpu"
        self._backend = "nccl" if on_gpu else "gloo"
        with fast_imports():
            import components.training.worker  # noqa: F401

            if engine == "deepspeed":
                import_deepspeed()

    def compute_features(self, work: Sequence[ShardWork], backbone: BackboneConfig, cache: VisionCache) -> None:
        """See `feature_writing.compute_features`."""
        compute_features(work, backbone, cache)

    def train(self, plan: WorkerPlan, datasets: Mapping[str, Dataset], data: ray.train.DataConfig) -> None:
        """Learn and score the stream, from its last checkpoint on; returns when all of it is written."""
        join_alone(self._backend)
        training = LocalTraining(plan.run_dir, datasets, data)
        set_train_fn_utils(training)
        try:
            train_stream_per_worker(plan)
        finally:
            training.close()
            set_train_fn_utils(None)
            gc.unfreeze()  # what `train_stream_per_worker` froze, with the model of this run
            gc.collect()


@dataclass(frozen=True)
class _Started:
    session: str  # of Ray's
    engine: str
    on_gpu: bool
    handle: ActorHandle


_started: _Started | None = None


def trains_alone(config: RunConfig) -> bool:
    """Whether a run has a `LocalWorker` in the Ray session that is open."""
    return config.cluster.num_workers == 1 and is_own_ray()


def early_worker(config: RunConfig, *, on_gpus: bool) -> ActorHandle | None:
    """Let the only worker's process start while the driver prepares; None where a run has none, or GPUs.

    There the features of pictures are computed on them first.
    """
    return local_worker(config, on_gpu=False) if trains_alone(config) and not on_gpus else None


def local_worker(config: RunConfig, *, on_gpu: bool) -> ActorHandle:
    """The worker process of this Ray session. One that is not there yet begins to start."""
    global _started
    session, engine = ray.get_runtime_context().get_session_name(), config.training.engine
    if _started is None or (_started.session, _started.engine, _started.on_gpu) != (session, engine, on_gpu):
        dismiss_local_worker()
        actor: Any = ray.remote(LocalWorker)  # Any: Ray's types have a proxy here, which is no handle for them
        # SPREAD: in a trial of a sweep it would otherwise have to fit into the trial's own place.
        placed = actor.options(num_cpus=1, num_gpus=int(on_gpu), scheduling_strategy="SPREAD")
        _started = _Started(session, engine, on_gpu, placed.remote(engine, on_gpu=on_gpu))
    return _started.handle


def dismiss_local_worker() -> None:
    """End the worker process of this Ray session, if there is one: it is lost, or what it holds is of no use."""
    global _started
    started, _started = _started, None
    if started is not None and started.session == ray.get_runtime_context().get_session_name():
        ray.kill(started.handle)
