"""A run's whole configuration: frozen dataclasses, composed here, validated where they are defined."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_type_hints

from components.core.errors import ConfigError
from components.core.location import Place, folder_at, is_uri, place
from components.core.machine import usable_cpus
from components.core.naming import id_of, require_id
from components.core.options import Count, CountOrZero, Json, NonNegative, check_options, from_plain, to_plain
from components.core.reading import ODD, read_object
from components.core.secrets import secret_in, without_secrets
from components.data.stream_config import StreamConfig
from components.evaluation.budget import Action, Budget, Measured
from components.evaluation.replies import Replies
from components.methods import method_config, options_for
from components.methods.options.base import MethodConfig
from components.methods.options.continual_llava import ContinualLlavaConfig
from components.models.config import BackboneConfig
from components.tracking.config import TrackingConfig
from components.training.optimizer_config import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How each task is learned. Accumulation follows from the batch sizes and the number of workers."""

    epochs: Count = 1
    """Passes over a task's training rows, where `updates_per_task` is not given."""
    updates_per_task: Count | None = None
    """Fixed number of optimizer updates per task instead of `epochs`: equal budgets across tasks and methods."""
    global_batch_size: Count = 8
    """Samples per optimizer update, over all workers."""
    micro_batch_size: Count | None = None
    """Samples per forward pass on each worker; None takes the largest that needs no accumulation."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """deepspeed shards what trains over the workers; torch is plain PyTorch, to compare with."""
    zero_stage: Literal[0, 2, 3] = 2
    """DeepSpeed's ZeRO: 0 shards nothing, 2 optimizer and gradients, 3 the frozen weights as well."""
    checkpoint_every_updates: Count = 100
    """Updates between checkpoints inside a task; an interrupted run continues from the last one."""
    skip_bad_updates: CountOrZero = 5
    """Updates of a task that may be skipped because their loss or gradient is not finite; one more ends the run."""
    cache_features: Literal["auto", "off"] = "auto"
    """Compute the frozen tower's features once per distinct picture that the run reaches; "auto" does so while they fit
    `feature_cache_gb`."""
    feature_cache_gb: NonNegative = 8.0
    """Gigabytes (1e9 bytes) that cached vision features may take on disk; above it none are cached."""

    def __post_init__(self) -> None:
        check_options(self, "training")

    def num_updates(self, num_rows: int) -> int:
        """Optimizer updates for a task of `num_rows` training rows.

        Every row is seen `epochs` times: where the rows do not fill the last update, it takes the first rows of one
        more pass. No update when the rows of all epochs do not fill one.
        """
        if self.updates_per_task is not None:
            return self.updates_per_task
        seen = num_rows * self.epochs
        return math.ceil(seen / self.global_batch_size) if seen >= self.global_batch_size else 0

    def micro_size(self, num_workers: int) -> int:
        """Samples per forward pass and worker."""
        per_worker = self.global_batch_size // num_workers
        size = self.micro_batch_size or per_worker
        if self.global_batch_size % num_workers or size == 0 or per_worker % size:
            raise ConfigError(
                f"training.global_batch_size {self.global_batch_size} does not divide into {num_workers} workers "
                f"with micro batches of {size or 'at least 1'}; choose a multiple of workers x micro batch."
            )
        return size

    def accumulation(self, num_workers: int) -> int:
        """Micro batches per update and worker."""
        return self.global_batch_size // (num_workers * self.micro_size(num_workers))


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How each row of the score matrix is measured: a reply to every test row of the tasks seen so far."""

    batch_size: Count = 16
    """Test rows that a worker answers together; it changes speed and memory, not what is asked."""
    batch_tokens: Count | None = None
    """Tokens that such a batch may take, padding and replies counted: short rows are then answered in batches of
    batch_size, long ones in smaller batches that fit the memory."""
    reuse: bool = True
    """Keep the replies of a batch of rows when nothing that answers it has changed, bit for bit, since it was last
    answered, in this run or, for the frozen model's own replies, in another one. Off: all rows are answered again, with
    the same replies."""
    refill: bool = False
    """Let the next rows take the places of those whose replies have ended: quicker where replies are long and of many
    lengths. Replies are those of batches up to rounding."""
    replies: Replies = "generated"
    """generated: every reply, greedily. acc, acc_norm: a row with options (letters, listed words, yes or no) is
    answered by the option of the highest log-likelihood, in all or per character, and only the others are generated."""
    zero_shot: bool = True
    """Row 0: every task before any training."""
    unseen: bool = False
    """Also score tasks not learned yet (the upper triangle), which forward transfer needs."""
    oracle_routing: bool = False
    """For routed methods: score a second time with the task known, so that forgetting splits into routing and drift."""
    limit: Count | None = None
    """Only the first rows of each test split."""
    split: Literal["test", "validation"] = "test"
    """Which rows are scored: the test split, or the validation part that stream.validation cuts from the training rows.
    Choose settings on validation rows, and report what the test rows say."""
    suites: tuple[str, ...] = ()
    """General suites, scored before the stream and after it and never trained on: mini-general, mini-constraints, or
    folders (paths or URIs) that pipelines/prepare.py wrote. They are scored whole, whatever `limit` says."""
    suites_after_every_task: bool = False
    """Score the suites after every task, not only before the first and after the last."""
    max_forgetting: NonNegative | None = None
    """Points of 0..100 that earlier tasks may have lost, after each task, since their best score (short:
    `--max-forgetting`). None: any number."""
    forgetting_of: Measured = "mean"
    """What max_forgetting bounds: the mean over the earlier tasks, or any one of them."""
    on_forgetting: Action = "warn"
    """What happens above it. warn: the run says so and goes on; stop: it ends in order with exit code 3; rollback: it
    ends so, too, and the task's checkpoint is moved to rejected/, so that the one before it is the run's last."""
    beside: CountOrZero = 0
    """Processes that score each row while the next task trains, on CPUs and GPUs beside the workers'; their replies are
    those of the workers. 0: the workers score each row before the next task."""
    beside_cpus: Count = 1
    """CPUs that each of these processes takes; it takes a GPU as well where workers have one."""
    beside_labels: tuple[str, ...] = ()
    """Labels, KEY=VALUE, of the nodes that these processes run on; none: any node."""
    beside_rows: Count = 1
    """Rows that scoring may be behind; beyond it training waits."""

    def __post_init__(self) -> None:
        check_options(self, "evaluation")
        for label in self.beside_labels:
            if not all(label.partition("=")[::2]):
                raise ConfigError(f"evaluation.beside_labels has {label!r}; write labels as KEY=VALUE.")
        if self.beside and self.max_forgetting is not None and self.on_forgetting != "warn":
            raise ConfigError(
                f"evaluation.on_forgetting is {self.on_forgetting}, which needs a row before the next task begins, and "
                "evaluation.beside scores it meanwhile; set evaluation.beside to 0, or on_forgetting to warn."
            )
        doubled = {name for name in self.suites if self.suites.count(name) > 1}
        if doubled:
            raise ConfigError(f"evaluation.suites names {sorted(doubled)[0]} twice; a suite is scored once.")

    @property
    def budget(self) -> Budget | None:
        """How much may be forgotten; None: any number of points."""
        if self.max_forgetting is None:
            return None
        return Budget(allowed=self.max_forgetting, measured=self.forgetting_of, action=self.on_forgetting)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the run happens, and on how many processes."""

    num_workers: Count = 1
    """Processes that train and score together, each with a share of every batch."""
    use_gpu: Literal["auto"] | bool = "auto"
    """Give every worker a GPU: true, false (all on CPUs), or auto (where the cluster has GPUs)."""
    worker_labels: tuple[str, ...] = ()
    """Labels, KEY=VALUE, of the nodes that the workers run on, such as ray-subcluster=train; none: any node."""
    data_labels: tuple[str, ...] = ()
    """Labels of the nodes on which rows are read and encoded for them, and features computed on CPUs; none: any
    node."""
    address: str | None = None
    """Ray address; None joins the cluster of a submitted job, and otherwise starts one inside this process."""
    threads_per_worker: Count | None = None
    """torch threads; None shares the CPUs that this process may use among the workers."""
    max_failures: CountOrZero = 3
    """How often a run goes on by itself, from the last checkpoint, after processes or nodes were lost; counted anew
    after every checkpoint. An error that the code raises ends the run at once."""
    hang_minutes: NonNegative = 0.0
    """After so many minutes without an update, an answered batch or another event, and at least three times the slowest
    so far, workers write their stacks into the run's folder and count as lost; 0 waits without end. Loading the model
    must be faster than that."""

    def __post_init__(self) -> None:
        check_options(self, "cluster")
        for name in ("worker_labels", "data_labels"):
            for label in getattr(self, name):
                if not all(label.partition("=")[::2]):
                    raise ConfigError(f"cluster.{name} has {label!r}; write labels as KEY=VALUE.")

    def threads(self) -> int:
        return self.threads_per_worker or max(1, usable_cpus() // self.num_workers)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One stream, one backbone, one method, one seed."""

    run_id: str | None = None
    """Name of the run and of its folder; the same id continues an interrupted run. None makes one from the time."""
    storage: str | Path = Path("runs")
    """Folder that holds runs and the default MLflow store; a path that every node sees, or a URI such as
    s3://bucket/runs."""
    seed: CountOrZero = 0
    """Seed of the method's start, of its draws and of the order of training rows."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    method: MethodConfig = field(default_factory=ContinualLlavaConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.storage == "":
            raise ConfigError("run.storage is empty; give a folder or a URI.")
        if isinstance(self.storage, str) and (not is_uri(self.storage) or self.storage.startswith("file:")):
            object.__setattr__(self, "storage", place(self.storage))  # a path, whatever a command line or file has
        check_options(self, "run")
        if self.run_id is not None:
            require_id(self.run_id)
        told = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        told["tracking"] = replace(self.tracking, uri=None)  # never written where it holds a password
        if (name := secret_in(told)) is not None:
            raise ConfigError(
                f"{name} holds a secret, and options are written into records; keep it in the environment."
            )
        stage = self.training.zero_stage
        if self.training.engine == "deepspeed" and stage not in self.method.zero_stages:
            allowed = ", ".join(str(allowed) for allowed in sorted(self.method.zero_stages))
            raise ConfigError(f"method {self.method.name} supports ZeRO stages {allowed}, not {stage}.")
        self.training.micro_size(self.cluster.num_workers)

    @property
    def place(self) -> Place:
        """The storage: an absolute path, or a place in a store; raises `ConfigError` for an unknown kind of store."""
        return folder_at(self.storage)

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer with its peak rate resolved: the configured one, or the method's default."""
        rate = self.training.optimizer.learning_rate or self.method.default_learning_rate
        return replace(self.training.optimizer, learning_rate=rate)

    def with_method(self, name: str) -> RunConfig:
        """The same run with another method, whose options are those for this run's backbone (`options_for`).

        Raises `ConfigError` for an unknown method.
        """
        return replace(self, method=options_for(name.replace("-", "_"), self.backbone))

    def to_json(self) -> dict[str, Json]:
        """The resolved configuration as plain JSON; `method` carries its name."""
        tracking = self.tracking
        if tracking.uri is not None and without_secrets(tracking.uri) != tracking.uri:
            tracking = replace(tracking, uri=None)  # passwords are not written down
        shown = replace(self, tracking=tracking, training=replace(self.training, optimizer=self.optimizer))
        # Field by field, because the type of `method` is known from its value only.
        plain = {item.name: to_plain(getattr(shown, item.name)) for item in dataclasses.fields(shown)}
        return plain | {"method": {"name": self.method.name, **plain["method"]}}

    @staticmethod
    def from_json(plain: Mapping[str, Json]) -> RunConfig:
        """The inverse of `to_json`. A field added since it was written has its default, or what a method did before
        (`MethodConfig.older`).

        Raises:
            ConfigError: a value of a wrong type or out of bounds, or an unknown method.
            KeyError, TypeError, ValueError: `plain` is not a configuration.
        """
        method = dict(_mapping(plain["method"]))
        kind = method_config(str(method.pop("name")))
        kinds: dict[str, Any] = get_type_hints(RunConfig, include_extras=True) | {"method": kind}
        values = {**plain, "method": kind.older(method)}
        return RunConfig(**{name: from_plain(kinds[name], values[name], name) for name in kinds})


Chosen = Mapping[str, Json]  # what best.json says of the choice: sweep, on (which rows), by, value, ...


@dataclass(frozen=True, kw_only=True)
class StoredConfig:
    """A configuration from a file, and how it differs from what this version knows."""

    config: RunConfig
    unknown: tuple[str, ...]  # options of the file that this version does not have; they are ignored
    absent: tuple[str, ...]  # options that the file does not name; they have their defaults
    stream_digest: str | None  # of the data it was run on, if the file has it
    chosen: Chosen | None = None  # how a sweep chose it, or the run that it comes from

    @property
    def chosen_on_test(self) -> bool:
        """Whether a sweep chose it, or what that sweep began with, by scores on test rows."""
        return chosen_on_test(self.chosen)


def chosen_on_test(chosen: Chosen | None) -> bool:
    """Whether a choice, or an earlier one that it began with (`began_with`), was made by scores on test rows."""
    if not chosen:
        return False
    earlier = chosen.get("began_with")
    return chosen.get("on") == "test" or (isinstance(earlier, dict) and chosen_on_test(earlier))


def read_config(path: Place) -> StoredConfig:
    """From `RunConfig.to_json`, a run's config.json or a record of a run; raises `ConfigError` for anything else."""
    advice = "give what --print-config prints, a run's config.json, or a record that report.py --record wrote"
    content = read_object(path, ConfigError, advice)
    try:
        record = content if "format" in content else {}
        plain = dict(record.get("config", content))
        digest = record.get("stream_digest", plain.pop("stream_digest", None))
        for fact in ("stream_name", "suite_digests", "rows"):  # of a run's folder; they are no options
            plain.pop(fact, None)
        chosen = record.get("chosen", plain.pop("chosen", None))
        if not (chosen is None or isinstance(chosen, dict)):
            raise TypeError(f"chosen is {chosen!r}")
        config = RunConfig.from_json(plain)
        given, known = flatten(plain), flatten(config.to_json())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except ODD as error:
        raise ConfigError(f"{path} is not a configuration ({_reason(error)}); {advice}.") from error
    return StoredConfig(
        config=config,
        unknown=tuple(name for name in given if name not in known),
        absent=tuple(name for name in known if name not in given),
        stream_digest=None if digest is None else str(digest),
        chosen=chosen,
    )


def flatten(plain: dict[str, Json], prefix: str = "") -> dict[str, str]:
    """`{"a": {"b": 1}}` -> `{"a.b": "1"}`: parameters for MLflow and for comparing two configurations."""
    flat: dict[str, str] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _mapping(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise TypeError(f"a mapping is needed, not {value!r}")
    return value


def default_run_id(config: RunConfig) -> str:
    """A readable id: stream, method, time."""
    stream = Path(config.stream.name.partition("?")[0]).stem
    return id_of(stream[:100], config.method.name[:60], f"{datetime.now():%Y%m%d-%H%M%S}")
