"""The driver: from a configuration to a finished stream. One `TorchTrainer.fit()` runs all tasks.

`run_stream` is what `coast.py` calls, and what a sweep's trial calls: check everything that can be checked, prepare
data and caches, start the workers, pass their events on, and return the finished matrix.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.actor import ActorHandle
from ray.data import Dataset, ExecutionOptions
from ray.exceptions import RayError, RayTaskError
from ray.train import CheckpointConfig, FailureConfig, Result, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.failure_handling import FailurePolicy
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from components.core.asking import PATIENCE_S
from components.core.checkpoint_files import remove_unreferenced
from components.core.errors import LostError, StorageError
from components.core.events import EventHandler, Note, PhaseBegan
from components.core.files import write_json
from components.core.fingerprint import code_fingerprint, code_root
from components.core.leftovers import clear_partial
from components.core.location import patient
from components.core.lock import sole_user
from components.core.ray_session import ray_session
from components.core.ray_watch import logs_folder, watched
from components.core.run_files import FINISHED_FILE
from components.core.tickets import require_not_lost
from components.data.rows import Split
from components.data.tasks import Task
from components.models.source import model_source
from components.training.budget import require_within_budget
from components.training.config import RunConfig
from components.training.deaths import (
    FAILURE_FILE,
    RetryLost,
    TellUsers,
    Tries,
    explained,
    going_on,
    is_lost,
)
from components.training.delivery import delivered
from components.training.devices import with_labels
from components.training.entry import train_stream_per_worker
from components.training.feature_writing import cache_features
from components.training.local_training import KEPT
from components.training.local_worker import dismiss_local_worker, early_worker, local_worker, trains_alone
from components.training.mending import mend
from components.training.pickled import PickledCallable, call_pickled
from components.training.plan import Plan, WorkerPlan
from components.training.preemption import stopping_when_drained
from components.training.ray_storage import ray_storage
from components.training.rendezvous import LoopbackTorchConfig
from components.training.resources import awaited_nodes, check_resources
from components.training.restoring import restore
from components.training.run_folder import (
    StreamResult,
    claim_run_dir,
    is_whole,
    read_result,
    require_whole,
)
from components.training.schedule import require_equal_passes
from components.training.scorers import scoring_beside
from components.training.stopping import clear_stop, stopping_on_signals
from components.training.streaming import dataset_name, fits_a_window, prompt_rows, training_rows, trains_here
from components.training.task_cache import cached_tasks
from components.training.vision_cache import Reached, VisionCache, feature_bytes, feature_root, vision_cache
from components.training.windows import Slice, plan_windows, reached_rows


def run_stream(plan: Plan, handle: EventHandler) -> StreamResult:
    """Run (or continue) the stream; every event of the workers goes to `handle` on this process.

    Raises:
        StreamStopped: the run was asked to end early (see training/stopping.py); by a signal it is `KeyboardInterrupt`.
        ConfigError: another process runs it.
        LostError: processes, nodes or Ray itself were lost, more often than `cluster.max_failures` in a row.
        TrainingError: a worker failed in another way; its traceback is in the run's folder.
        LittoralError: what a worker raised for users, as itself.
    """
    cluster = plan.config.cluster
    with (
        sole_user(plan.run_dir, f"run {plan.run_dir.name}"),
        ray_session(cluster.address, num_workers=cluster.num_workers),
        _deaths_explained(plan),
    ):
        on_gpus = check_resources(plan.config)
        worker = early_worker(plan.config, on_gpus=on_gpus)
        plan = replace(plan, run_dir=patient(plan.run_dir, PATIENCE_S))
        claim_run_dir(plan)
        clear_partial(plan.run_dir)
        clear_stop(plan.run_dir)
        handle(PhaseBegan(phase="checking the run's folder"))
        plan = mend(plan, restore(plan, handle), handle)
        remove_unreferenced(plan.run_dir)
        if (awaited := awaited_nodes(cluster)) is not None:
            handle(Note(text=awaited, warning=True))
        handle(PhaseBegan(phase="preparing data"))
        cache = filled_cache(plan, handle, worker)
        datasets = build_datasets(plan, cache)
        # Should its process be lost, another one takes its place; only what was in it is lost with it. So it is on the
        # driver's node: when another one is lost, no event is.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        event_queue = Queue(
            actor_options={"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        )
        with (
            delivered(event_queue, handle),
            stopping_on_signals(plan.run_dir, lambda text: handle(Note(text=text))) as raise_if_received,
            stopping_when_drained(plan.run_dir, lambda text: handle(Note(text=text, warning=True))),
        ):
            handle(PhaseBegan(phase="starting the workers"))
            started = worker_plan(plan, event_queue, cache)
            with scoring_beside(started, on_gpus=on_gpus) as scorers:
                fit(replace(started, scorers=scorers), datasets, handle, on_gpus=on_gpus)
        if not is_whole(plan):
            raise_if_received()
            require_within_budget(plan)
        require_whole(plan)
        if isinstance(plan.run_dir, Path):  # what a lost worker left; in a store it cannot be told from what is at work
            clear_partial(plan.run_dir)
        remove_unreferenced(plan.run_dir)
        write_json(plan.run_dir / FINISHED_FILE, {"finished": datetime.now().astimezone().isoformat()})
        (plan.run_dir / FAILURE_FILE).unlink(missing_ok=True)
        return read_result(plan.run_dir)


@contextmanager
def _deaths_explained(plan: Plan) -> Iterator[None]:
    """Make one sentence of what Ray raises in here."""
    logs = logs_folder()
    try:
        yield
    except (RayError, TrainingFailedError, LostError) as error:
        raise explained(error, plan.run_dir, logs=logs, trial=plan.shared_dir is not None) from error
    except StorageError as error:
        if isinstance(plan.run_dir, Path):
            raise
        raise explained(error, plan.run_dir, logs=logs, trial=plan.shared_dir is not None) from error


def build_datasets(plan: Plan, cache: VisionCache | None) -> dict[str, Dataset]:
    """Datasets by `dataset_name`: one per split, task or suite, and rank. One that no worker reads is never started.

    Splits of few rows have none: the workers read them by themselves (`trains_here`, `prompts_here`).
    """
    config, training, num_workers = plan.config, plan.config.training, plan.config.cluster.num_workers
    if cache is None:
        require_equal_passes(config, plan.schedule)
    datasets: dict[str, Dataset] = {}
    for scheduled, rank in itertools.product(plan.schedule, range(num_workers)):
        task = scheduled.task
        num_rows = scheduled.num_updates * training.global_batch_size
        if num_rows and not trains_here(num_rows, num_workers, cache):
            datasets[dataset_name("train", task.name, rank)] = training_rows(
                scheduled.splits,
                config.backbone,
                slice=Slice(rank=rank, world_size=num_workers, micro_batch_size=training.micro_size(num_workers)),
                epochs=scheduled.num_epochs(training.global_batch_size),
                num_rows=num_rows,
                seed=config.seed,
                cache=cache,
            ).dataset()
    scored = [("test", task.name, task.test, _test_rows(plan, task)) for task in plan.stream.tasks]
    scored += [("suite", suite.name, suite.test, suite.test.num_rows) for suite in plan.suites]
    for (kind, name, split, num_rows), rank in itertools.product(scored, range(num_workers)):
        if not fits_a_window(num_rows, num_workers):
            datasets[dataset_name(kind, name, rank)] = prompt_rows(
                split,
                config.backbone,
                slice=Slice(rank=rank, world_size=num_workers),
                num_rows=num_rows,
                cache=cache,
            ).dataset()
    return datasets


def _test_rows(plan: Plan, task: Task) -> int:
    """Number of a task's test rows that are scored, from the first."""
    return min(task.test.num_rows, plan.config.evaluation.limit or task.test.num_rows)


def rows_reached(plan: Plan) -> list[tuple[Split, Reached]]:
    """By split: the rows that the run learns from or is scored on."""
    batch, seed = plan.config.training.global_batch_size, plan.config.seed
    passes = [
        (scheduled.splits, scheduled.num_epochs(batch), scheduled.num_updates * batch, seed)
        for scheduled in plan.schedule
        if scheduled.num_updates
    ]
    passes += [((task.test,), 1, _test_rows(plan, task), None) for task in plan.stream.tasks]
    passes += [((suite.test,), 1, suite.test.num_rows, None) for suite in plan.suites]
    splits: dict[str, Split] = {}
    reached: dict[str, dict[tuple[int, int], set[int]]] = {}
    for read, epochs, num_rows, shuffle in passes:
        windows = plan_windows(read, epochs=epochs, num_rows=num_rows, seed=shuffle)
        for (number, shard, group), rows in reached_rows(windows, num_rows).items():
            split = splits.setdefault(read[number].digest, read[number])
            reached.setdefault(split.digest, {}).setdefault((shard, group), set()).update(rows)
    return [
        (splits[digest], {place: sorted(rows) for place, rows in groups.items()}) for digest, groups in reached.items()
    ]


def filled_cache(plan: Plan, handle: EventHandler, worker: ActorHandle | None) -> VisionCache | None:
    """The vision cache with all that the run reads; None when switched off or too large. `worker` may fill it."""
    training, backbone = plan.config.training, plan.config.backbone
    if training.cache_features == "off" or not model_source(backbone).family_class().takes_pictures():
        return None
    reached = rows_reached(plan)
    size = feature_bytes(reached, backbone)
    if size > training.feature_cache_gb * 1e9:
        handle(
            Note(
                text=f"vision features would take up to {size / 1e9:.1f} GB, more than training.feature_cache_gb "
                f"{training.feature_cache_gb:g}; they are computed in every step instead"
            )
        )
        return None
    root = feature_root(plan.run_dir.parent)
    cache = vision_cache(backbone, root, model_source(backbone).fingerprint())
    on_cpus = with_labels(plan.config.cluster.data_labels)
    watched(lambda: cache_features(reached, backbone, cache, on_cpus=on_cpus, worker=worker), "vision features")
    return cache


def worker_plan(plan: Plan, event_queue: Queue, cache: VisionCache | None) -> WorkerPlan:
    """The plan as workers and scorers get it."""
    return WorkerPlan(
        **vars(plan),
        code=code_fingerprint(),
        code_root=str(code_root()),
        event_queue=event_queue,
        shared=feature_root(plan.run_dir.parent),
        cache=cache,
        cached=() if plan.shared_dir is None else cached_tasks(plan.shared_dir, plan.config, plan.schedule),
    )


def fit(plan: WorkerPlan, datasets: dict[str, Dataset], handle: EventHandler, *, on_gpus: bool) -> None:
    """Start the workers with Ray Train and wait for the stream; lost processes are replaced, see `RetryLost`."""
    tries = Tries(plan.run_dir, plan.config.cluster.max_failures)
    while True:
        if trains_alone(plan.config):
            training = functools.partial(_train_alone, plan, datasets, on_gpu=on_gpus)
        else:
            training = _trainer(plan, datasets, on_gpus=on_gpus).fit
        try:
            # Not in the main thread: there Ray Train would replace our handler of SIGINT with its own, which ends the
            # workers without a checkpoint.
            watched(training, "Ray Train", lambda: require_not_lost(plan.run_dir))
        except (RayError, TrainingFailedError) as error:
            dismiss_local_worker()
            # Of the only worker, or of the controller that replaces workers.
            if not isinstance(error, RayError) or not is_lost(error) or not tries.another():
                raise
            handle(Note(text=going_on(error, tries)))
            restore(plan, handle)  # the controller writes its list in place, and may have been killed as it did
        else:
            if on_gpus:  # the next run of this process may need the GPU for its pictures first
                dismiss_local_worker()
            return


def _train_alone(plan: WorkerPlan, datasets: dict[str, Dataset], *, on_gpu: bool) -> None:
    """Have the stream learned by the only worker; what its code raises comes as from Ray Train's controller."""
    try:
        ray.get(local_worker(plan.config, on_gpu=on_gpu).train.remote(plan, datasets, _data_config(plan.config)))
    except RayTaskError as error:
        if is_lost(error):
            raise
        raise WorkerGroupError(str(error), {0: error.cause}) from error


class _Trainer(TorchTrainer):
    """Ray Train's, with a failure policy of our own and without a helper process: it has no options for these."""

    def __init__(self, *, policy: FailurePolicy, **options: Any) -> None:  # Any: as Ray has it
        super().__init__(call_pickled, **options)  # type: ignore[arg-type]  (Ray hands on any configuration, no dict only)
        self._policy = policy

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        """Ray's own; without datasets none starts the process that manages them."""
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if self.datasets or not isinstance(each, DatasetsCallback)]

    def _initialize_and_run_controller(self, **options: Any) -> Result:  # Any: as Ray has it
        return super()._initialize_and_run_controller(**{**options, "failure_policy": self._policy})


def _trainer(plan: WorkerPlan, datasets: dict[str, Dataset], *, on_gpus: bool) -> TorchTrainer:
    config, event_queue = plan.config, plan.event_queue
    assert event_queue is not None, "the driver made one"
    storage, filesystem = ray_storage(plan.run_dir.parent)
    # A worker that reports a checkpoint waits until Ray Train polls it, which is every 2 s by default. Here all workers
    # together are polled a hundred times a second, but each one at most ten times.
    seconds = max(0.1, config.cluster.num_workers / 100)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(seconds))
    failures = FailureConfig(max_failures=config.cluster.max_failures, controller_failure_limit=3)
    return _Trainer(
        policy=RetryLost(failures, Tries(plan.run_dir, config.cluster.max_failures), TellUsers(event_queue)),
        train_loop_config=PickledCallable(functools.partial(train_stream_per_worker, plan)),  # type: ignore[arg-type]
        scaling_config=ScalingConfig(
            num_workers=config.cluster.num_workers,
            use_gpu=on_gpus,
            label_selector=with_labels(config.cluster.worker_labels) or None,
        ),
        torch_config=LoopbackTorchConfig(backend="nccl" if on_gpus else "gloo"),
        datasets={**datasets},
        dataset_config=_data_config(config),
        run_config=RayRunConfig(
            name=plan.run_dir.name,
            storage_path=storage,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
            failure_config=failures,
            worker_runtime_env={"env_vars": {"DS_ACCELERATOR": "cuda" if on_gpus else "cpu"}},
        ),
    )


def _data_config(config: RunConfig) -> ray.train.DataConfig:
    """How workers read their datasets; it replaces the execution options of every one of them."""
    return ray.train.DataConfig(
        datasets_to_split=[],
        execution_options=ExecutionOptions(
            preserve_order=True, label_selector=with_labels(config.cluster.data_labels) or None
        ),
    )
