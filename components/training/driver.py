"""The driver: from a configuration to a finished stream. One `TorchTrainer.fit()` runs all tasks.

`run_stream` is what `coast.py` calls, and what a sweep's trial calls: check everything that can be checked, prepare
data and caches, start the workers, pass their events on, and return the finished matrix.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import ray
import ray.train
from ray.data import Dataset, ExecutionOptions
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.queue import Empty, Queue

from components.core.errors import ConfigError, LittoralError, StreamStopped
from components.core.events import Event, Note
from components.core.files import write_json
from components.core.fingerprint import code_fingerprint, code_root
from components.core.machine import cache_dir, require_cache, usable_cpus
from components.core.ray_session import open_ray
from components.data.rows import Split
from components.data.streams import data_root, open_stream
from components.data.suite import Suite
from components.data.suites.opening import open_suites
from components.data.tasks import Task, TaskStream
from components.evaluation.general import GENERAL_FILE, GeneralScores
from components.evaluation.matrix import MATRIX_FILE, VARIANTS, ScoreMatrix, variant_file
from components.models.source import model_source
from components.training.config import Chosen, Json, RunConfig, flatten
from components.training.entry import WorkerPlan, train_stream_per_worker
from components.training.lengths import Fitted, fit_to_backbone
from components.training.pickled import PickledCallable, call_pickled
from components.training.run_folder import id_of, sole_user
from components.training.schedule import ScheduledTask, plan_schedule, require_equal_passes
from components.training.stopping import STOP_FILE, clear_stop
from components.training.streaming import (
    Slice,
    dataset_name,
    plan_windows,
    prompt_dataset,
    reached_rows,
    training_dataset,
)
from components.training.task_cache import cached_tasks
from components.training.vision_cache import (
    Reached,
    VisionCache,
    cache_features,
    feature_bytes,
    vision_cache,
    vision_shape,
)

CONFIG_FILE, FINISHED_FILE = "config.json", "finished.json"
SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a job that `ray job submit` started

EventHandler = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class StreamResult:
    """What a finished stream leaves."""

    matrix: ScoreMatrix
    variants: dict[str, ScoreMatrix]  # other readings of the same rows that were measured: see training/evaluate.py
    general: GeneralScores  # of the general suites; empty without any

    @property
    def oracle(self) -> ScoreMatrix | None:
        """With the task known at test time; None unless it was asked for and the method routes."""
        return self.variants.get("oracle")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do, before anything starts."""

    config: RunConfig
    stream: TaskStream
    schedule: tuple[ScheduledTask, ...]
    suites: tuple[Suite, ...]
    run_dir: Path
    fitted: Fitted = field(default_factory=Fitted)  # how the rows fit the backbone
    chosen: Chosen | None = None  # how a sweep chose the options; None: nobody says
    shared_dir: Path | None = None  # where runs of one sweep leave and find learned tasks; None: every run learns all


def plan_stream(config: RunConfig) -> Plan:
    """Resolve data and check that every task can train; raises `ConfigError`/`DataError`, starts no process."""
    if config.run_id is None:
        raise ConfigError("a run needs an id; give --run-id NAME.")
    require_lasting_storage(config.storage)
    require_cache()
    stream = open_stream(config.stream, scored=config.evaluation.split)
    run_dir = config.storage.expanduser().resolve() / config.run_id
    suites = open_suites(config.evaluation.suites, data_root(config.stream), stream)
    stream, suites, fitted = fit_to_backbone(
        config.backbone, config.stream, stream, suites, limit=config.evaluation.limit
    )
    return Plan(
        config=config,
        stream=stream,
        schedule=plan_schedule(config, stream),
        suites=suites,
        run_dir=run_dir,
        fitted=fitted,
    )


def require_lasting_storage(storage: Path) -> None:
    """Raise `ConfigError` for a relative folder inside a submitted job: it would be deleted with the job's copy."""
    if SUBMITTED_JOB in os.environ and not storage.expanduser().is_absolute():
        raise ConfigError(
            f"storage {str(storage)!r} is relative, and a submitted job works in a copy that is deleted afterwards; "
            "give --storage an absolute folder that every node sees."
        )


def default_run_id(config: RunConfig) -> str:
    """A readable id: stream, method, time."""
    stream = Path(config.stream.name).stem
    return id_of(stream[:100], config.method.name[:60], f"{datetime.now():%Y%m%d-%H%M%S}")


def run_stream(plan: Plan, handle: EventHandler) -> StreamResult:
    """Run (or continue) the stream; every event of the workers goes to `handle` on this process.

    Raises `StreamStopped` when the run was asked to end early (see training/stopping.py) and `ConfigError` while
    another process runs it.
    """
    with sole_user(plan.run_dir, f"run {plan.run_dir.name}"), ray_session(plan.config):
        claim_run_dir(plan)
        clear_stop(plan.run_dir)
        check_resources(plan.config)
        datasets = build_datasets(plan, handle)
        event_queue = Queue(actor_options={"num_cpus": 0})
        with delivered(event_queue, handle):
            fit(plan, datasets, event_queue)
        require_whole(plan)
        write_json(plan.run_dir / FINISHED_FILE, {"finished": datetime.now().astimezone().isoformat()})
        return read_result(plan.run_dir)


def require_whole(plan: Plan) -> None:
    """Raise `StreamStopped` where the workers ended before the last task."""
    learned, num_tasks = learned_in(plan.run_dir), len(plan.stream.tasks)
    if learned < num_tasks:
        raise StreamStopped(
            f"run {plan.run_dir.name} was asked to end by {plan.run_dir / STOP_FILE} and stands after {learned} of "
            f"{num_tasks} tasks; the same command goes on from there."
        )


def learned_in(run_dir: Path) -> int:
    """Tasks that are learned and scored in a run's folder."""
    path = run_dir / MATRIX_FILE
    return ScoreMatrix.read(path).num_learned if path.is_file() else 0


def finished_result(plan: Plan) -> StreamResult | None:
    """The result of a run that is complete already, after checking that it is this run."""
    if not (plan.run_dir / FINISHED_FILE).is_file():
        return None
    check_run_dir(plan)
    return read_result(plan.run_dir)


def read_result(run_dir: Path) -> StreamResult:
    """The matrices a run has written so far."""
    files = {name: variant_file(run_dir, name) for name in VARIANTS}
    variants = {name: ScoreMatrix.read(path) for name, path in files.items() if path.is_file()}
    general = GeneralScores.read(run_dir / GENERAL_FILE)
    return StreamResult(matrix=ScoreMatrix.read(run_dir / MATRIX_FILE), variants=variants, general=general)


def check_run_dir(plan: Plan) -> None:
    """Refuse a storage nobody can write to, and a run id that belongs to a run with other settings; writes nothing."""
    path = plan.run_dir / CONFIG_FILE
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        # Through the classes: a setting that is younger than the run has its default there, which changes nothing.
        known = {"rows": _rows(_before_rows_were_kept(plan))}
        _require_same_run(plan, known | stored | RunConfig.from_json(stored).to_json(), _identity(plan))
    existing = next(folder for folder in [plan.run_dir, *plan.run_dir.parents] if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"cannot write to {existing}; choose a writable folder with --storage.")


def claim_run_dir(plan: Plan) -> None:
    """Create the run's folder with its configuration, or check that the existing one is the same run."""
    check_run_dir(plan)
    try:
        plan.run_dir.mkdir(parents=True, exist_ok=True)
        if not (plan.run_dir / CONFIG_FILE).is_file():
            write_json(plan.run_dir / CONFIG_FILE, _identity(plan))
    except OSError as error:
        raise ConfigError(f"cannot write to {plan.run_dir} ({error.strerror}); choose a writable --storage.") from error


def _identity(plan: Plan) -> dict[str, Json]:
    digests: dict[str, Json] = {suite.name: suite.digest for suite in plan.suites}
    facts: dict[str, Json] = {
        "stream_name": plan.stream.name,
        "stream_digest": plan.stream.digest,
        "suite_digests": digests,
    }
    if plan.chosen is not None:
        facts["chosen"] = {**plan.chosen}
    return {**plan.config.to_json(), **facts, "rows": _rows(plan.fitted)}


def _rows(fitted: Fitted) -> dict[str, Json]:
    """How rows become a model's input: what a run's record says of it, and what a continued run must have again."""
    return {"template": fitted.template, "left_out": {**fitted.left_out}, "cut": {**fitted.cut}}


def _before_rows_were_kept(plan: Plan) -> Fitted:
    """What holds for a run whose record says nothing of its rows: no row was too long, and only chatml is unchanged."""
    template = plan.fitted.template
    return Fitted(template=template if template == "chatml" else "as in an earlier version")


def _require_same_run(plan: Plan, stored: dict[str, Json], wanted: dict[str, Json]) -> None:
    ignored = ("run_id", "storage", "tracking", "cluster", "stream_name", "chosen")
    old = flatten({name: value for name, value in stored.items() if name not in ignored})
    new = flatten({name: value for name, value in wanted.items() if name not in ignored})
    if not any(name.startswith("rows.cut.") for name in old.keys() | new.keys()):
        # The limit says only which rows take part, and the digests tell the same.
        for name in ("backbone.max_length", "backbone.too_long"):
            old.pop(name, None)
            new.pop(name, None)
    different = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if different:
        name = different[0]
        raise ConfigError(
            f"run {plan.config.run_id} exists with {name} = {old.get(name)}, this command has {new.get(name)}"
            + (f" ({len(different)} settings differ)" if len(different) > 1 else "")
            + "; use the same settings to continue it, or another --run-id."
        )


# ---- Ray ---------------------------------------------------------------------------------------------------------


@contextmanager
def ray_session(config: RunConfig, *, trials: int = 1) -> Iterator[None]:
    """Join the cluster of a submitted job or of `cluster.address`; otherwise start one inside this process.

    For a sweep, `trials` streams run in it at the same time.
    """
    if ray.is_initialized():
        yield
        return
    quiet = not logging.getLogger("littoral").isEnabledFor(logging.DEBUG)
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    level = logging.ERROR if quiet else logging.INFO
    if quiet:
        logging.getLogger("ray").setLevel(level)
    # Logical CPUs: Ray Data must find some beside the workers, also on two cores.
    cpus = max(4, usable_cpus(), trials * (config.cluster.num_workers + 2))
    open_ray(config.cluster.address, num_cpus=cpus, log_to_driver=not quiet, logging_level=level)
    for name in ("ray.data", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR if quiet else logging.INFO)
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(config: RunConfig) -> None:
    """Refuse at once what the cluster can never place; Ray Train would wait for ever."""
    resources = ray.cluster_resources()
    wanted = config.cluster.num_workers
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if wanted + 1 > cpus:
        raise ConfigError(
            f"{wanted} workers need {wanted + 1} CPUs (one is left to Ray Data), the cluster has {cpus}; lower "
            "cluster.num_workers or add nodes."
        )
    if config.cluster.use_gpu and wanted > gpus:
        raise ConfigError(
            f"{wanted} workers with a GPU each were asked for, the cluster has {gpus} GPUs; lower cluster.num_workers "
            "or set cluster.use-gpu to False."
        )


def build_datasets(plan: Plan, handle: EventHandler) -> dict[str, Dataset]:
    """Datasets by `dataset_name`: one per split, task or suite, and rank. Those nobody asks for are never started."""
    config, training, num_workers = plan.config, plan.config.training, plan.config.cluster.num_workers
    cache = _filled_cache(plan, handle)
    if cache is None:
        require_equal_passes(config, plan.schedule)
    datasets: dict[str, Dataset] = {}
    for scheduled, rank in itertools.product(plan.schedule, range(num_workers)):
        task = scheduled.task
        if scheduled.num_updates:
            datasets[dataset_name("train", task.name, rank)] = training_dataset(
                scheduled.splits,
                config.backbone,
                slice=Slice(rank=rank, world_size=num_workers, micro_batch_size=training.micro_size(num_workers)),
                epochs=scheduled.num_epochs(training.global_batch_size),
                num_rows=scheduled.num_updates * training.global_batch_size,
                seed=config.seed,
                cache=cache,
            )
        datasets[dataset_name("test", task.name, rank)] = prompt_dataset(
            task.test,
            config.backbone,
            slice=Slice(rank=rank, world_size=num_workers),
            num_rows=_test_rows(plan, task),
            cache=cache,
        )
    for suite, rank in itertools.product(plan.suites, range(num_workers)):
        datasets[dataset_name("suite", suite.name, rank)] = prompt_dataset(
            suite.test,
            config.backbone,
            slice=Slice(rank=rank, world_size=num_workers),
            num_rows=suite.test.num_rows,
            cache=cache,
        )
    return datasets


def _test_rows(plan: Plan, task: Task) -> int:
    """How many of a task's test rows are scored: the first ones."""
    return min(task.test.num_rows, plan.config.evaluation.limit or task.test.num_rows)


def rows_reached(plan: Plan) -> list[tuple[Split, Reached]]:
    """By split: the rows that the run learns from or is scored on."""
    batch, seed = plan.config.training.global_batch_size, plan.config.seed
    passes = [
        (scheduled.splits, scheduled.num_epochs(batch), scheduled.num_updates * batch, seed)
        for scheduled in plan.schedule
        if scheduled.num_updates
    ]
    passes += [((scheduled.task.test,), 1, _test_rows(plan, scheduled.task), None) for scheduled in plan.schedule]
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


def _filled_cache(plan: Plan, handle: EventHandler) -> VisionCache | None:
    """The vision cache with all that the run reads; None when switched off or too large."""
    training, backbone = plan.config.training, plan.config.backbone
    if training.cache_features == "off":
        return None
    reached = rows_reached(plan)
    num_rows = sum(len(rows) for _, groups in reached for rows in groups.values())
    size = feature_bytes(num_rows, vision_shape(backbone), backbone.dtype)
    if size > training.feature_cache_gb * 1e9:
        handle(
            Note(
                text=f"vision features would take up to {size / 1e9:.1f} GB, more than training.feature_cache_gb "
                f"{training.feature_cache_gb:g}: the tower runs in every step"
            )
        )
        return None
    cache = vision_cache(backbone, cache_dir(), model_source(backbone).fingerprint())
    cache_features(reached, backbone, cache)
    return cache


def fit(plan: Plan, datasets: dict[str, Dataset], event_queue: Queue) -> None:
    """Ray Train: start the workers, wait for the stream; a worker's own error comes back as itself."""
    config = plan.config
    entry = WorkerPlan(
        config=config,
        stream=plan.stream,
        schedule=plan.schedule,
        suites=plan.suites,
        run_dir=plan.run_dir,
        code=code_fingerprint(),
        code_root=str(code_root()),
        event_queue=event_queue,
        shared=() if plan.shared_dir is None else cached_tasks(plan.shared_dir, config, plan.schedule),
    )
    # A worker that reports waits until Ray Train asks it, which is every 2 s by default; here a hundred times a second
    # over all workers, but each ten times at most.
    seconds = max(0.1, config.cluster.num_workers / 100)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(seconds))
    trainer = TorchTrainer(
        call_pickled,  # type: ignore[arg-type]  (Ray hands on any configuration, not only a dict)
        train_loop_config=PickledCallable(functools.partial(train_stream_per_worker, entry)),  # type: ignore[arg-type]
        scaling_config=ScalingConfig(num_workers=config.cluster.num_workers, use_gpu=config.cluster.use_gpu),
        torch_config=TorchConfig(backend="nccl" if config.cluster.use_gpu else "gloo"),
        datasets={**datasets},
        # Ray Train puts these in the place of what a dataset says of its own execution.
        dataset_config=ray.train.DataConfig(
            datasets_to_split=[], execution_options=ExecutionOptions(preserve_order=True)
        ),
        run_config=RayRunConfig(
            name=plan.run_dir.name,
            storage_path=str(plan.run_dir.parent),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=config.cluster.max_failures, controller_failure_limit=3),
            worker_runtime_env={"env_vars": {"DS_ACCELERATOR": "cuda" if config.cluster.use_gpu else "cpu"}},
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = user_error(failure)
            if cause is not None:
                raise cause from error
        raise
    except TrainingFailedError as error:
        cause = user_error(error)
        if cause is not None:
            raise cause from error
        raise


def user_error(error: BaseException | None) -> LittoralError | None:
    """The first `LittoralError` in an exception's chain of causes."""
    while error is not None:
        if isinstance(error, LittoralError):
            return error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


@contextmanager
def delivered(event_queue: Queue, handle: EventHandler) -> Iterator[None]:
    """While open, a thread passes events from the workers' queue to `handle`; on exit the rest is delivered."""
    stop = threading.Event()

    def pump() -> None:
        while True:
            try:
                handle(event_queue.get(timeout=0.5))
            except Empty:
                if stop.is_set():
                    return

    thread = threading.Thread(target=pump, name="events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=60)
        event_queue.shutdown()
