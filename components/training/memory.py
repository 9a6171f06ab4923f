"""What a run needs of each GPU, in bytes, by what it is for: what `--dry-run` prints before any weight is read.

The page docs/guides/memory-and-time.md has the arithmetic for LLaVA-1.5-7B, and how far it is from a measured GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from components.models.shape import FLOAT32
from components.training.buckets import zero_buckets
from components.training.counting import Counted, MethodSize

GIB = 2**30
OVERHEAD = GIB  # of CUDA's context, its libraries' workspaces and what the allocator cannot use
CLOSE = 0.1  # the plan is right to about a tenth: what is nearer to the limit than this is warned about, not refused


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the rows and the options ask of one worker."""

    num_workers: int
    engine: str
    zero_stage: int
    micro_batch_size: int
    checkpointing: bool
    compute_width: int
    """Bytes of a number in the adapters' arithmetic."""
    eager: bool
    """Attention is written out rather than fused."""
    train_tokens: int
    """Of the longest training row."""
    supervised: int
    """Supervised positions of that row."""
    evaluation_batch_size: int
    """Of the longest prompts."""
    prompt_tokens: int
    """Of the longest prompt."""
    new_tokens: int
    """Most tokens of a reply."""
    num_tasks: int
    features_cached: bool
    on_gpu: bool
    train_pictures: int = 1
    """Of the training row with most pictures; `prompt_pictures`: of the prompt."""
    prompt_pictures: int = 1


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on each GPU by name, while a task is learned and while rows are answered."""

    training: dict[str, int]
    answering: dict[str, int]
    other_checkpointing: int
    """What training would take in all with gradient checkpointing the other way round."""

    @property
    def needed(self) -> int:
        return max(sum(self.training.values()), sum(self.answering.values()))


def memory_plan(counted: Counted, load: Load) -> MemoryPlan:
    """The plan of one worker; a method that could not be counted (`Counted.method` is None) counts as nothing."""
    size = counted.method or MethodSize(trainable=(), growth=0, kept=0, per_token=0, widest=0)
    learned = FLOAT32 * size.growth * (load.num_tasks - 1)
    training = {**_training(counted, size, load), "earlier tasks": learned}
    other = _activations(counted, size, load, checkpointing=not load.checkpointing)
    return MemoryPlan(
        training=_without_zeros(training),
        answering=_without_zeros(_answering(counted, size, load) | {"earlier tasks": learned}),
        other_checkpointing=sum(training.values()) - training["activations"] + other,
    )


def _training(counted: Counted, size: MethodSize, load: Load) -> dict[str, int]:
    shape, trains = counted.shape, sum(size.trainable)
    if not trains:
        return {"activations": 0}
    sharded = load.num_workers if load.engine == "deepspeed" and load.zero_stage else 1
    frozen, bucket, master = shape.weights * shape.width, 0, 0
    if load.engine == "deepspeed" and load.zero_stage:
        buckets = zero_buckets(size.trainable, counted.frozen, load.zero_stage)
        bucket = buckets["reduce_bucket_size"] * FLOAT32
        master = trains * FLOAT32 // sharded  # DeepSpeed's optimizer has its own copy of this rank's part
        if load.zero_stage == 3:
            frozen = frozen // sharded + buckets["stage3_prefetch_bucket_size"] * shape.width
    copies = trains * load.compute_width if load.compute_width < FLOAT32 else 0
    return {
        "frozen weights": frozen,
        "trained, float32": trains * FLOAT32 // (sharded if load.zero_stage == 3 else 1) + copies,
        "gradients": trains * FLOAT32 // sharded,
        "optimizer": 2 * trains * FLOAT32 // sharded + master,
        "DeepSpeed's bucket": bucket,
        "activations": _activations(counted, size, load, checkpointing=load.checkpointing),
        "logits": load.micro_batch_size * load.supervised * shape.logit_bytes,
        "pictures": 0 if load.features_cached else load.micro_batch_size * load.train_pictures * shape.tower_bytes,
        "CUDA": OVERHEAD if load.on_gpu else 0,
    }


def _activations(counted: Counted, size: MethodSize, load: Load, *, checkpointing: bool) -> int:
    shape, tokens = counted.shape, load.micro_batch_size * load.train_tokens
    adapters = size.kept * load.compute_width / shape.layers
    layer = tokens * (shape.layer_bytes(load.train_tokens, eager=load.eager) + adapters)
    if not checkpointing:
        return int(shape.layers * layer)
    return int(shape.layers * tokens * shape.checkpoint_bytes + layer)


def _answering(counted: Counted, size: MethodSize, load: Load) -> dict[str, int]:
    shape, rows = counted.shape, load.evaluation_batch_size
    adapters = size.widest * load.compute_width
    return {
        "frozen weights": shape.weights * shape.width,
        "trained, float32": sum(size.trainable) * FLOAT32,
        "prefill": rows * load.prompt_tokens * (shape.prefill_bytes + adapters),
        "keys and values": rows * (load.prompt_tokens + load.new_tokens) * shape.cache_bytes,
        "pictures": 0 if load.features_cached else rows * load.prompt_pictures * shape.tower_bytes,
        "CUDA": OVERHEAD if load.on_gpu else 0,
    }


def _without_zeros(parts: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in parts.items() if size}
