"""What a run needs and whether it gets it: devices, memory on each, time. Known before any process starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from components.core.errors import ConfigError
from components.models.config import BackboneConfig
from components.training.config import RunConfig
from components.training.counting import Counted, counted
from components.training.devices import Devices, planned_devices, uses_gpu
from components.training.feature_size import FeatureSize, feature_size
from components.training.forecast import Forecast, assumed_speed, forecast
from components.training.memory import CLOSE, GIB, Load, MemoryPlan, memory_plan
from components.training.named_rows import split_name
from components.training.placement import require_places, require_scorers
from components.training.plan import Plan

LARGE = 1_000_000_000  # weights; with more of them in bfloat16 a CPU takes minutes for an update
EXAMPLE = "H100"  # the card that a plan is for where the run would be refused for want of one


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one plan takes on the devices there are."""

    devices: Devices
    on_gpus: bool
    """Whether workers get a GPU each; of a cluster that is not joined yet, it is assumed."""
    no_gpu_for_it: bool
    """The model is too large for the CPUs that it would run on, and nobody asked for that."""
    counted: Counted
    memory: MemoryPlan
    features: FeatureSize
    forecast: Forecast | None

    @property
    def for_gpu(self) -> bool:
        """Whether memory and time are those of a GPU."""
        return self.on_gpus or self.no_gpu_for_it


def needs_of(plan: Plan) -> Needs:
    """Count, and look at this machine or at the cluster that is joined."""
    config, devices = plan.config, planned_devices(plan.config.cluster)
    number = counted(config.backbone, config.method)
    asked = config.cluster.use_gpu
    on_gpus = asked is not False if devices.gpus is None else uses_gpu(asked, devices.gpus)
    large = config.backbone.dtype == "bfloat16" and number.shape.weights > LARGE
    refused = large and not on_gpus and asked == "auto"
    features, for_gpu = feature_size(plan), on_gpus or refused
    load = load_of(plan, on_gpus=for_gpu, features_cached=features.fits)
    speed = assumed_speed(
        replace(devices, name=EXAMPLE) if refused or devices.gpus is None else devices,
        on_gpus=for_gpu,
        dtype=config.backbone.dtype,
        layers=number.shape.layers,
        threads=config.cluster.threads(),
    )
    return Needs(
        devices=devices,
        on_gpus=on_gpus,
        no_gpu_for_it=refused,
        counted=number,
        memory=memory_plan(number, load),
        features=features,
        forecast=None if speed is None else forecast(plan, number, load, speed),
    )


def load_of(plan: Plan, *, on_gpus: bool, features_cached: bool) -> Load:
    """What the plan's rows and options ask of one worker: its longest rows decide."""
    config, tokens = plan.config, plan.fitted.tokens
    taught = [tokens[split_name(split)] for each in plan.schedule if each.num_updates for split in each.splits]
    asked = [tokens[split_name(each.test)] for each in (*plan.stream.tasks, *plan.suites)]
    prompt = max((each.longest for each in asked), default=0)
    new_tokens = max(each.max_new_tokens for each in (*plan.stream.tasks, *plan.suites))
    rows, room = config.evaluation.batch_size, config.evaluation.batch_tokens
    backbone, training, workers = config.backbone, config.training, config.cluster.num_workers
    return Load(
        num_workers=workers,
        engine=training.engine,
        zero_stage=training.zero_stage,
        micro_batch_size=training.micro_size(workers),
        checkpointing=backbone.gradient_checkpointing,
        compute_width=compute_width(backbone, on_gpus=on_gpus),
        eager=backbone.attention == "eager" or (backbone.attention == "auto" and not on_gpus),
        train_tokens=max((each.longest for each in taught), default=0),
        supervised=max((each.replies for each in taught), default=0),
        train_pictures=max((each.pictures[1] for each in taught), default=0),
        evaluation_batch_size=rows if room is None else min(rows, max(1, room // (prompt + new_tokens))),
        prompt_tokens=prompt,
        prompt_pictures=max((each.pictures[1] for each in asked), default=0),
        new_tokens=new_tokens,
        num_tasks=sum(1 for each in plan.schedule if each.num_updates),
        features_cached=features_cached,
        on_gpu=on_gpus,
    )


def compute_width(backbone: BackboneConfig, *, on_gpus: bool) -> int:
    """Bytes of a number in the adapters' arithmetic: see `BackboneConfig.adapter_compute`."""
    compute = backbone.adapter_compute
    narrow = compute == "bfloat16" or (compute == "auto" and on_gpus and backbone.dtype == "bfloat16")
    return 2 if narrow else 4


def require_fit(plan: Plan, needs: Needs) -> None:
    """Raise `ConfigError` for what cannot run on the devices there are; see `close_to_limit` for what may just not."""
    config, devices, memory = plan.config, needs.devices, needs.memory
    require_scorers(config.evaluation)
    if needs.no_gpu_for_it:
        raise ConfigError(
            f"{config.backbone.name} has {needs.counted.shape.weights:.1e} weights in bfloat16 and there is no GPU: "
            "an update would take minutes; run it where there is one, or set --cluster.use-gpu false for the CPU."
        )
    if devices.nodes:
        require_places(config, devices.nodes, on_gpus=needs.on_gpus)
    if not needs.on_gpus or devices.gpus is None:
        return
    if config.cluster.num_workers > devices.gpus:
        raise ConfigError(
            f"cluster.num_workers is {config.cluster.num_workers}, each with a GPU, and the number of GPUs is "
            f"{devices.gpus}; "
            "lower cluster.num_workers or set cluster.use-gpu to false."
        )
    if devices.memory is not None and memory.needed * (1 - CLOSE) > devices.memory:
        raise ConfigError(
            f"this run needs about {memory.needed / GIB:.0f} GiB on each GPU, and {devices.name or 'one'} has "
            f"{devices.memory / GIB:.0f}; {_what_to_lower(config, memory, devices.memory)}."
        )


def close_to_limit(needs: Needs) -> str | None:
    """A warning where the plan is within a tenth of the GPU's memory; what is beyond that is refused."""
    memory, limit = needs.memory, needs.devices.memory
    if not needs.on_gpus or limit is None:
        return None
    if memory.needed * (1 + CLOSE) < limit or memory.needed * (1 - CLOSE) > limit:
        return None
    return f"about {memory.needed / GIB:.1f} of {limit / GIB:.1f} GiB of each GPU are planned for: it may just not fit"


def _what_to_lower(config: RunConfig, memory: MemoryPlan, limit: int) -> str:
    """What helps against the larger of the two sums; nothing does where the weights alone are too large."""
    weights = memory.answering["frozen weights"]  # of the whole model: answering takes it on every GPU
    if weights > limit:
        return f"its frozen weights alone take {weights / GIB:.0f}, so take a larger GPU or a smaller model"
    if sum(memory.answering.values()) >= sum(memory.training.values()):
        return f"lower evaluation.batch_size (now {config.evaluation.batch_size}) or set evaluation.batch_tokens"
    ways = [f"lower training.micro_batch_size (now {config.training.micro_size(config.cluster.num_workers)})"]
    if not config.backbone.gradient_checkpointing and memory.other_checkpointing < memory.needed:
        ways.append(f"set backbone.gradient_checkpointing ({memory.other_checkpointing / GIB:.0f} GiB)")
    if config.backbone.dtype == "float32":
        ways.append("set backbone.dtype to bfloat16")
    return f"{', '.join(ways)} or take a larger GPU"


def duration(seconds: float) -> str:
    """`less than a minute`, `about 12 min`, `about 3.5 h`, `about 6 days`: as precise as an estimate is."""
    if seconds < 60:
        return "less than a minute"
    if seconds < 100 * 60:
        return f"about {seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"about {seconds / 3600:.1f} h"
    return f"about {timedelta(seconds=seconds) / timedelta(days=1):.0f} days"
