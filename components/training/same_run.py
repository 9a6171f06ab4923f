"""Which options may change when a run goes on. Every option is in one of the three sets; a method's are in the last.

A new option must be put into one of them: tests/unit/test_same_run.py compares them with the classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Where things lie and are recorded. A run may be moved.
PLACE = frozenset(
    {
        *("run_id", "storage", "cluster.address", "stream.data_dir"),
        *("tracking.uri", "tracking.experiment", "tracking.enabled", "tracking.wait_s"),
    }
)

# How a run is carried out. These change speed, memory and rounding; each session of a run notes them.
EXECUTION = frozenset(
    {
        "backbone.attention",  # kernels of the same product
        "backbone.float32_kernels",  # the same precision
        "backbone.gradient_checkpointing",
        "training.micro_batch_size",  # an update is that of its whole batch: see `take_step`
        "training.engine",  # both keep the optimizer's moments as plain tensors by name
        "training.zero_stage",
        "training.checkpoint_every_updates",
        "training.skip_bad_updates",  # ends a run, or lets it go on
        "training.cache_features",
        "training.feature_cache_gb",
        "evaluation.batch_size",
        "evaluation.batch_tokens",
        "evaluation.refill",  # rounding, as other batches
        *("evaluation.beside", "evaluation.beside_cpus", "evaluation.beside_labels", "evaluation.beside_rows"),
        "evaluation.reuse",  # kept replies are those that would come out again
        "evaluation.max_forgetting",  # with the next two: whether a run goes on, not what it learns
        "evaluation.forgetting_of",
        "evaluation.on_forgetting",
        "cluster.num_workers",
        "cluster.use_gpu",
        "cluster.worker_labels",
        "cluster.data_labels",
        "cluster.threads_per_worker",
        "cluster.max_failures",
        "cluster.hang_minutes",
    }
)

# What is learned and what is asked: another value makes another run.
RESULT = frozenset(
    {
        "seed",
        *("stream.name", "stream.size", "stream.order", "stream.data_seed"),
        *("stream.train_limit", "stream.test_limit", "stream.validation"),
        *("backbone.name", "backbone.dtype", "backbone.adapter_compute", "backbone.float32_matmul"),
        *("backbone.vision_layer", "backbone.template", "backbone.pad_to_square"),
        *("backbone.max_length", "backbone.too_long"),  # unless they admit the same rows: see `compare`
        *("training.epochs", "training.updates_per_task", "training.global_batch_size"),
        *("training.optimizer.learning_rate", "training.optimizer.weight_decay", "training.optimizer.epsilon"),
        *("training.optimizer.beta1", "training.optimizer.beta2"),
        *("training.optimizer.warmup_ratio", "training.optimizer.max_grad_norm"),
        *("evaluation.zero_shot", "evaluation.unseen", "evaluation.oracle_routing", "evaluation.limit"),
        *("evaluation.split", "evaluation.replies", "evaluation.suites", "evaluation.suites_after_every_task"),
    }
)

NO_OPTIONS = ("stream_name", "chosen.")  # of a run's config.json: how they begin; they decide nothing
SHOWN = 200  # characters of a value in a sentence

Change = tuple[str, str]  # old and new value


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Options by name whose value differs, each with its old and its new value."""

    refused: dict[str, Change]
    execution: dict[str, Change]
    other: tuple[str, ...] = ()  # may change as well: places, the same data under another name, limits of length


def compare(old: Mapping[str, str], new: Mapping[str, str], *, also_result: Iterable[str] = ()) -> Differences:
    """What differs between a stored and a wanted run, both flat as `flatten` makes them, without differences of place.

    `also_result`: execution that decides the result of the run's method (`MethodConfig.result_depends_on`).
    """
    names = old.keys() | new.keys()
    same = set(PLACE)
    if not any(name.startswith("rows.cut.") for name in names):
        # The limit only decides which rows take part, and the digests cover that.
        same |= {"backbone.max_length", "backbone.too_long"}
    if all(old.get(name) == new.get(name) for name in ("stream_name", "stream_digest")):
        same.add("stream.name")  # the same data, in another folder
    if old.get("method.name") != new.get("method.name"):
        same |= {name for name in names if name.startswith("method.")} - {"method.name"}
    changes = {
        name: (old.get(name, "absent"), new.get(name, "absent"))
        for name in sorted(names)
        if old.get(name) != new.get(name) and not name.startswith(NO_OPTIONS)
    }
    free = EXECUTION.difference(also_result)
    return Differences(
        refused={name: change for name, change in changes.items() if name not in free | same},
        execution={name: change for name, change in changes.items() if name in free},
        other=tuple(name for name in changes if name in same & (PLACE | RESULT)),
    )


def execution_of(flat: Mapping[str, str]) -> dict[str, str]:
    """How a run with these options is carried out, for the record of a session."""
    return {name: flat[name] for name in sorted(EXECUTION) if name in flat}


def shown(value: str) -> str:
    """A value as a sentence holds it."""
    return value if len(value) <= SHOWN else f"{value[:SHOWN]}..."
