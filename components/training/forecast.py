"""How long a run will take: floating point operations over the speed that the device is assumed to reach.

An estimate, to tell an hour from a week. Every assumption is printed beside it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from components.training.counting import Counted
from components.training.devices import Devices
from components.training.lengths import RowTokens
from components.training.memory import Load
from components.training.named_rows import split_name
from components.training.plan import Plan

# Of a card's peak for dense bfloat16 products: what LoRA steps on LLaVA-1.5-7B reached of 989 TFLOP/s on an H200
# (docs/results/first-look-h200.md).
UTILISATION = 0.33
DECODE_S_PER_LAYER = 1e-3  # of a token of a batch: launching kernels takes longer than running them
CPU_SHARE = 0.5  # of the speed of one large matrix product, measured now
CPU_SIZE = 1024  # of that product
CPU_TRIES_S = 0.5  # of tries, after which none follows: without instructions for bfloat16 one takes seconds


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one worker is assumed to compute."""

    per_second: float
    """Floating point operations."""
    decode_s: float
    """Seconds that a batch needs for one more token of every reply, at least."""
    assumption: str


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Seconds of all training, and of all scoring at most: replies often end before their limit."""

    training_s: float
    scoring_s: float
    assumption: str


def assumed_speed(devices: Devices, *, on_gpus: bool, dtype: str, layers: int, threads: int) -> Speed | None:
    """The speed of one worker; None for a GPU whose peak is not known."""
    if not on_gpus:
        rate = CPU_SHARE * measured_rate(getattr(torch, dtype), threads)
        return Speed(
            per_second=rate,
            decode_s=0.0,
            assumption=f"{rate / 1e9:.0f} GFLOP/s, half of what a matrix product reaches here now",
        )
    if devices.peak is None:
        return None
    return Speed(
        per_second=UTILISATION * devices.peak * 1e12,
        decode_s=layers * DECODE_S_PER_LAYER,
        assumption=f"{UTILISATION:.0%} of {devices.peak:.0f} TFLOP/s of {devices.name}, "
        f"{layers * DECODE_S_PER_LAYER * 1e3:.0f} ms a token of a batch",
    )


def measured_rate(dtype: torch.dtype, threads: int) -> float:
    """Floating point operations per second of a matrix product on this machine's CPUs, the best of at most three."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        one = torch.ones(CPU_SIZE, CPU_SIZE, dtype=dtype)
        seconds = list[float]()
        while len(seconds) < 3 and sum(seconds) < CPU_TRIES_S:
            started = time.perf_counter()
            torch.mm(one, one)
            seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return 2.0 * CPU_SIZE**3 / min(seconds)


def forecast(plan: Plan, counted: Counted, load: Load, speed: Speed) -> Forecast:
    """Training of every task, and scoring of every row of the matrix."""
    batch, tokens = plan.config.training.global_batch_size, plan.fitted.tokens
    operations = 0.0
    for scheduled in plan.schedule:
        parts = [(split.num_rows / scheduled.num_rows, tokens[split_name(split)]) for split in scheduled.splits]
        mean = sum(share * each.mean for share, each in parts)
        pictures = sum(share * each.pictures[0] for share, each in parts)
        operations += scheduled.num_updates * batch * row_operations(counted, load, mean, pictures)
    seconds = sum(
        rows * _answer_seconds(counted, load, speed, tokens[name], room)
        for name, (rows, room) in rows_answered(plan).items()
    )
    return Forecast(
        training_s=operations / (speed.per_second * load.num_workers),
        scoring_s=seconds / (plan.config.evaluation.beside or load.num_workers),
        assumption=speed.assumption,
    )


def rows_answered(plan: Plan) -> dict[str, tuple[int, int]]:
    """By split: how many rows are answered in the whole run, and the most tokens that a reply may have.

    Oracle routing answers again only what was routed elsewhere, which is not counted.
    """
    evaluation, tasks = plan.config.evaluation, plan.stream.tasks
    moments = [position for position, scheduled in enumerate(plan.schedule) if scheduled.scored]
    found: dict[str, tuple[int, int]] = {}
    for number, task in enumerate(tasks):
        everything = evaluation.unseen or plan.stream.mixture is not None
        seen = sum(1 for moment in moments if everything or number <= moment)
        rows = min(task.test.num_rows, evaluation.limit or task.test.num_rows)
        found[split_name(task.test)] = rows * (seen + evaluation.zero_shot), task.max_new_tokens
    times = 1 + (len(moments) if evaluation.suites_after_every_task else 1)
    for suite in plan.suites:
        found[split_name(suite.test)] = suite.test.num_rows * times, suite.max_new_tokens
    return found


def _answer_seconds(counted: Counted, load: Load, speed: Speed, tokens: RowTokens, room: int) -> float:
    """Seconds of one worker for one row: its prompt, and its share of a batch that waits for its longest reply."""
    shape, replies = counted.shape, min(room, tokens.replies) if tokens.replies > 1 else room
    per_token = 0 if counted.method is None else counted.method.per_token
    length = tokens.mean + replies
    operations = shape.forward_operations(length, tokens.mean) + 2.0 * per_token * length
    if not load.features_cached:
        operations += tokens.pictures[0] * shape.tower_operations()
    return operations / speed.per_second + replies * speed.decode_s / load.evaluation_batch_size


def row_operations(counted: Counted, load: Load, tokens: float, pictures: float = 1.0) -> float:
    """Operations of one training row: forward, gradients of activations, those of adapters, and recomputation."""
    shape, per_token = counted.shape, 0 if counted.method is None else counted.method.per_token
    passes = 3 if load.checkpointing else 2
    adapters = 2.0 * per_token * tokens * (passes + 1)
    tower = 0.0 if load.features_cached else pictures * shape.tower_operations()
    return passes * shape.forward_operations(tokens, tokens) + adapters + tower
