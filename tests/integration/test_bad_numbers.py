"""An update that meets a bad number changes no bit, on any worker: it equals an update that was never made.

    python -m pytest tests/integration/test_bad_numbers.py

One row of one worker has features that are not numbers, or infinite. Large ones make an infinite loss on
some processors only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest
import torch
from engine_job import INSTRUCTIONS, OPTIMIZER, PICTURED, UPDATES, examples, with_picture
from torch import Tensor
from worker_processes import results_of

from components.data.batch import Batch, Example, collate
from components.methods.base import MethodConfig, TaskInfo
from components.methods.cl_moe import ClMoeConfig
from components.methods.lcia import LciaConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.training.engine import DeepSpeedEngine, Engine, TorchEngine, trainable_parameters
from components.training.step import take_step
from tests.pictures import cached

BAD = (1, 3)  # of a task's updates


@dataclass(frozen=True, kw_only=True)
class BadJob:
    """Two tasks; the bad updates are made (`kind`), or left out (None)."""

    stage: Literal[0, 2, 3] | None
    kind: Literal["nan", "infinite"] | None
    world_size: int = 1
    accumulation: int = 1
    method: MethodConfig = field(default_factory=lambda: SequentialLoraConfig(rank=4))


# One adapter; an average that moves with every update; counts of every update.
AVERAGED = replace(LciaConfig.tiny(), threshold=0.0)
COUNTED = ClMoeConfig(sentence_encoder="hash", statistics="layer")
JOBS = [
    BadJob(stage=None, kind="nan", method=AVERAGED),
    BadJob(stage=2, kind="infinite"),
    BadJob(stage=None, kind="infinite", world_size=2, accumulation=2),
    BadJob(stage=0, kind="nan", world_size=2, method=AVERAGED),
    BadJob(stage=2, kind="nan", world_size=2, method=AVERAGED),
    BadJob(stage=2, kind="nan", world_size=2, accumulation=2, method=COUNTED),
    BadJob(stage=3, kind="nan", world_size=2),
    BadJob(stage=3, kind="infinite", world_size=2, accumulation=2, method=AVERAGED),
]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one worker: bits by name of all that was trained, counted and kept after both tasks."""

    bits: dict[str, bytes]
    norms: list[float]


def poisoned(row: Example, model: Backbone, kind: str) -> Example:
    features = torch.full((4, model.picture_width), math.nan if kind == "nan" else math.inf)
    return replace(row, pictures=(cached(features),))


def bits_of(part: str, tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {f"{part}/{name}": value.detach().cpu().contiguous().numpy().tobytes() for name, value in tensors.items()}


def built(job: BadJob, model: Backbone, micro: int) -> Engine:
    if job.stage is None:
        return TorchEngine(model, OPTIMIZER, accumulation=job.accumulation)
    return DeepSpeedEngine(
        model, OPTIMIZER, zero_stage=job.stage, micro_batch_size=micro, accumulation=job.accumulation
    )


def outcome(job: BadJob, rank: int) -> Outcome:
    """Both tasks on one worker."""
    model = load_backbone(BackboneConfig(name="pocket"))
    method = job.method.build(seed=0)
    method.attach(model, None)
    rows = [with_picture(row, model) if index in PICTURED else row for index, row in enumerate(examples())]
    micro = len(rows) // (job.world_size * job.accumulation)

    def share(rows: list[Example]) -> list[Batch]:
        starts = range(rank * micro, len(rows), micro * job.world_size)
        return [collate(rows[start : start + micro], pad_id=0, padding_side="right") for start in starts]

    bits: dict[str, bytes] = {}
    norms: list[float] = []
    bad_rows = [*rows]
    bad_rows[PICTURED[1]] = poisoned(rows[PICTURED[1]], model, job.kind or "nan")
    for index in range(2):
        task = TaskInfo(index=index, name=f"task{index}", instructions=[INSTRUCTIONS[index]])
        method.begin_task(model, task)
        engine = built(job, model, micro)
        for update in range(UPDATES):
            if update in BAD and job.kind is None:
                continue
            engine.set_learning_rate(OPTIMIZER.rate_at(update, UPDATES))
            model.train()
            batches = share(bad_rows if update in BAD else rows)
            take_step(engine, model, method, batches, model.device)
            norms.append(float(engine.grad_norm))
        bits |= bits_of(f"{index}/moments", engine.optimizer_state())
        bits |= bits_of(f"{index}/counted", method.task_state())
        engine.close()
        bits |= bits_of(f"{index}/trained", dict(trainable_parameters(model)))
        method.end_task(engine, task, iter(share(rows)))
        bits |= bits_of(f"{index}/kept", method.state_dict(model).tensors)
    return Outcome(bits=bits, norms=norms)


@pytest.fixture(scope="module")
def outcomes() -> dict[BadJob, list[Outcome]]:
    jobs = [*dict.fromkeys([*JOBS, *(replace(job, kind=None) for job in JOBS)])]
    found: dict[BadJob, list[Outcome]] = {}
    for world_size in (1, 2):
        chosen = [job for job in jobs if job.world_size == world_size]
        found |= results_of(outcome, chosen, world_size=world_size)
    return found


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_a_bad_update_equals_none(job: BadJob, outcomes: dict[BadJob, list[Outcome]]) -> None:
    for met, left_out in zip(outcomes[job], outcomes[replace(job, kind=None)], strict=True):
        bad = [update for update, norm in enumerate(met.norms) if not math.isfinite(norm)]
        assert bad == [*BAD, *(UPDATES + update for update in BAD)]  # on the workers without the row as well
        assert [norm for norm in met.norms if math.isfinite(norm)] == left_out.norms
        assert met.bits.keys() == left_out.bits.keys()
        assert [name for name in met.bits if met.bits[name] != left_out.bits[name]] == []
