"""Named runs: functions that return a whole configuration. A preset is where a comparison's budget is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from components.core.errors import ConfigError
from components.core.location import is_uri, place
from components.core.options import listed
from components.data.stream_config import StreamConfig
from components.methods.options.continual_llava import ContinualLlavaConfig
from components.methods.options.lcia import LciaConfig
from components.methods.options.moelora import MoeLoraConfig
from components.models.config import BackboneConfig
from components.training.config import Chosen, EvaluationConfig, RunConfig, TrainingConfig, flatten, read_config
from components.training.optimizer_config import OptimizerConfig
from pipelines.published import Benchmark, as_published


def coast_domain() -> RunConfig:
    """Continual LLaVA on mini-COAST's four domain tasks with the embedded model: the default run."""
    return RunConfig(
        # The budget of the pages' main table: right after it was learned, a task is well above its majority answer.
        training=TrainingConfig(global_batch_size=4, updates_per_task=60, checkpoint_every_updates=30),
        evaluation=EvaluationConfig(oracle_routing=True),
    )


def coast_nano() -> RunConfig:
    """The default run on fewer rows and updates: what `sweep.py` varies unless told otherwise."""
    run = coast_domain()
    return replace(
        run,
        # Of mini's rows, so that a sweep has about 80 validation rows of a task to choose by and not about 6 of nano's.
        stream=StreamConfig(train_limit=96),
        training=replace(run.training, updates_per_task=24, global_batch_size=4),
        evaluation=replace(run.evaluation, limit=32),
    )


def coast_capability() -> RunConfig:
    """Continual LLaVA on mini-COAST's four answer styles."""
    return replace(coast_domain(), stream=StreamConfig(name="mini-coast-capability"))


def coast_pictures() -> RunConfig:
    """Continual LLaVA on four tasks that ask in the same words and differ in pictures, where routing is hard."""
    return replace(coast_domain(), stream=StreamConfig(name="mini-coast-pictures"))


def coin() -> RunConfig:
    """MoELoRA on mini-CoIN's eight tasks with the embedded model."""
    return replace(coast_domain(), stream=StreamConfig(name="mini-coin"), method=MoeLoraConfig())


def coin_nano() -> RunConfig:
    """Quick: mini-CoIN's eight tasks at nano size with the pocket model, to try a method."""
    return replace(pocket(), stream=StreamConfig(name="mini-coin", size="nano"))


def lcia_per_sample() -> RunConfig:
    """LCIA with every test row served by its most similar group, and averages that start at a task's start."""
    return replace(coast_domain(), method=LciaConfig.per_sample())


def pocket() -> RunConfig:
    """Quick: the pocket model on nano-size data, to try commands and to test."""
    return RunConfig(
        stream=StreamConfig(size="nano"),
        backbone=BackboneConfig(name="pocket"),
        # With the published length of stage 1. `--method continual-llava` has the shorter one for small backbones.
        method=ContinualLlavaConfig(sentence_encoder="hash"),
        training=TrainingConfig(epochs=2, global_batch_size=8, optimizer=OptimizerConfig(learning_rate=1e-2)),
        evaluation=EvaluationConfig(oracle_routing=True),
    )


def llava_7b() -> RunConfig:
    """LLaVA-1.5-7B in bfloat16 on GPUs, with the rates of the authors' scripts; name your own --stream.name."""
    run = RunConfig(
        backbone=BackboneConfig(name="llava-hf/llava-1.5-7b-hf", dtype="bfloat16", gradient_checkpointing=True),
        # Four rows on each of eight GPUs, as in traces of Continual LLaVA's code.
        training=TrainingConfig(global_batch_size=32, micro_batch_size=4),
    )
    return as_published(run, "coast")


def llava_7b_coast() -> RunConfig:
    """Continual LLaVA with LLaVA-1.5-7B on COAST-domain, prepared in prepared/coast-domain: one epoch a task."""
    return replace(llava_7b(), stream=StreamConfig(name="prepared/coast-domain"))


def llava_7b_coin() -> RunConfig:
    """MoELoRA with LLaVA-1.5-7B on CoIN in its main order, prepared in prepared/coin: one epoch a task."""
    run = replace(llava_7b(), stream=StreamConfig(name="prepared/coin"), method=MoeLoraConfig())
    # CoIN's first scripts and LCIA's have 8 to 20 rows on each of 8 GPUs, by task; here it is 16 for all. CoIN's last
    # release accumulates 8 times, which leaves ScienceQA 14 updates, and its score falls from 82 to 73.
    run = replace(run, training=replace(run.training, global_batch_size=128))
    return as_published(run, "coin")


def llava_13b_coast() -> RunConfig:
    """llava-7b-coast with LLaVA-1.5-13B."""
    return _with_13b(llava_7b_coast())


def llava_13b_coin() -> RunConfig:
    """llava-7b-coin with LLaVA-1.5-13B, which LCIA's paper reports too."""
    return _with_13b(llava_7b_coin())


def _with_13b(run: RunConfig) -> RunConfig:
    return replace(run, backbone=replace(run.backbone, name="llava-hf/llava-1.5-13b-hf"))


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "coast-domain": coast_domain,
    "coast-nano": coast_nano,
    "coast-capability": coast_capability,
    "coast-pictures": coast_pictures,
    "coin": coin,
    "coin-nano": coin_nano,
    "lcia-per-sample": lcia_per_sample,
    "pocket": pocket,
    "llava-7b": llava_7b,
    "llava-7b-coast": llava_7b_coast,
    "llava-7b-coin": llava_7b_coin,
    "llava-13b-coast": llava_13b_coast,
    "llava-13b-coin": llava_13b_coin,
}
# With another method these take its published options and rate on that benchmark.
PUBLISHED: dict[str, Benchmark] = {
    "llava-7b": "coast",
    "llava-7b-coast": "coast",
    "llava-13b-coast": "coast",
    "llava-7b-coin": "coin",
    "llava-13b-coin": "coin",
}
DEFAULT_PRESET = "coast-domain"
# Names that presets had once: each is coast-domain with these options. They go with the next release.
FORMER = {
    "sequential-lora": "--method sequential-lora",
    "zero-shot": "--method zero-shot",
    "lcia": "--method lcia",
    "lcia-one-group": "--method lcia --method.threshold 0",
    "lcia-constant": "--method lcia --method.threshold 0 --method.balance constant",
    "lcia-frozen": "--method lcia --method.threshold 0 --method.balance frozen --method.ema-start task_start",
    "intrinsic-only": "--method.components intrinsic",
    "contextual-only": "--method.components contextual",
    "contextual-constant": "--method.contextual constant",
    "contextual-zero": "--method.contextual zero",
    "shared-pool": "--method.pool shared",
    "batch-selection": "--method.selection batch",
}


def is_file(name: str) -> bool:
    """Whether a preset is named by its file, a path or a URI."""
    return name.partition("?")[0].endswith(".json")


def preset(name: str) -> RunConfig:
    """The configuration called `name`, or the one in the JSON file `name`: what `--print-config` prints, what a sweep
    leaves as its best, a run's config.json or a record of a run. Raises `ConfigError` with the nearest name for an
    unknown one.
    """
    if is_file(name):
        return replace(read_config(place(name)).config, run_id=None, storage=RunConfig().storage)
    if name in PRESETS:
        return PRESETS[name]()
    if is_uri(name) or Path(name).expanduser().is_dir():
        raise ConfigError(
            f"{name} is a place and no preset; give a storage as --storage {name}, or the settings of a run as its "
            "config.json."
        )
    raise ConfigError(f"unknown preset {name!r}; known are {listed(name, PRESETS)}")


def with_method(name: str, run: RunConfig, method: str) -> RunConfig:
    """`run`, which began as preset `name`, with another method; raises `ConfigError` for an unknown one."""
    run = run.with_method(method)
    return as_published(run, PUBLISHED[name]) if name in PUBLISHED and not run.backbone.is_small else run


def preset_notes(name: str) -> list[str]:
    """How the options in the file `name` differ from those of this version; [] for a named preset."""
    if not is_file(name):
        return []
    stored, notes = read_config(place(name)), list[str]()
    if stored.chosen_on_test:
        notes.append(f"{name} was chosen by its scores on test rows, so these rows do not test it.")
    if stored.unknown:
        notes.append(f"{name} sets {', '.join(stored.unknown)}, which this version does not have: left out.")
    if stored.absent:
        now = flatten(stored.config.to_json())
        absent = ", ".join(f"{option} = {now[option]}" for option in stored.absent)
        notes.append(f"{name} does not name these options, which have their defaults: {absent}.")
    return notes


def how_chosen(name: str) -> Chosen | None:
    """How a sweep chose the options in the file `name`; None for a named preset and where no sweep did."""
    return read_config(place(name)).chosen if is_file(name) else None


def data_note(name: str, config: RunConfig, digest: str) -> str | None:
    """A sentence where the file `name` is of a run on other data than those of `config` here; None for all else."""
    if not is_file(name):
        return None
    stored = read_config(place(name))
    then = stored.config
    asked = (config.stream, config.evaluation.split) != (then.stream, then.evaluation.split)
    if stored.stream_digest in (None, digest) or asked:
        return None
    return (
        f"{name} was made on other data of {config.stream.name} ({stored.stream_digest[:12]}) than there are here "
        f"({digest[:12]}), so its scores may not be reproduced."
    )
