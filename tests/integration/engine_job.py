"""Small jobs without Ray: two tasks of a method on the pocket model, under any engine and world size."""

from __future__ import annotations

import functools
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor
from worker_processes import results_of

from components.core.checkpoint import read_checkpoint, write_checkpoint
from components.core.options import Json
from components.data.batch import IGNORE, Example, collate
from components.methods.base import MethodConfig, MethodState, TaskInfo, copy_tensors, load_parameters
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.training.engine import DeepSpeedEngine, Engine, TorchEngine, mean_over_workers, trainable_parameters
from components.training.optimizer import OptimizerConfig
from tests.pictures import cached

GLOBAL_BATCH, UPDATES = 8, 5
INSTRUCTIONS = ("Read the chart.", "Name what you see.")  # of each task, and of every other row
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A place in a job: before this update of this task, both from 0."""

    task: int
    update: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """`stage` None is the plain torch engine. `interrupt_at`: leave and re-enter the engine before that update.

    `pictures`: some rows have one, so that a worker meets micro-batches with and without. `compute`: frozen weights in
    bfloat16, and adapters that compute so. `norms`: after the losses, the norm of the gradient at every update.

    `until`: end there and leave in the folder `marks` what a checkpoint holds. `since`: go on from what was left so.
    """

    stage: int | None
    world_size: int = 1
    accumulation: int = 1
    interrupt_at: int | None = None
    checkpointing: bool = False
    pictures: bool = False
    compute: Literal["float32", "bfloat16"] | None = None
    norms: bool = False
    since: Mark | None = None
    until: Mark | None = None
    marks: Path | None = None
    method: MethodConfig = field(default_factory=lambda: SequentialLoraConfig(rank=4))

    def left_at(self, mark: Mark) -> Path:
        assert self.marks is not None
        return self.marks / f"{mark.task}-{mark.update}"


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a session leaves inside a task: the method at the task's start, and what was trained and counted since."""

    before: MethodState
    values: dict[str, Tensor]
    in_task: dict[str, Tensor]
    moments: dict[str, Tensor]

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        tensors = {"method": self.before.tensors, "values": self.values, "in_task": self.in_task}
        write_checkpoint(folder, {"structure": self.before.structure}, {**tensors, "moments": self.moments})

    @classmethod
    def read(cls, folder: Path) -> Left:
        stored = read_checkpoint(folder)
        structure = cast("dict[str, Json]", stored.state["structure"])
        found = stored.tensors
        return cls(
            before=MethodState(tensors=found["method"], structure=structure),
            values=found["values"],
            in_task=found["in_task"],
            moments=found["moments"],
        )


def losses_of(jobs: Collection[Job]) -> dict[Job, list[float]]:
    """By job: losses of every update of both tasks, then each task's loss on the plain model once the engine closed."""
    found: dict[Job, list[float]] = {}
    for world_size in sorted({job.world_size for job in jobs}):
        chosen = [job for job in jobs if job.world_size == world_size]
        results = results_of(learned, chosen, world_size=world_size)
        found |= {job: first for job, (first, *_) in results.items()}
    return found


PICTURED = (0, 3, 4)  # never both rows of a micro-batch of two, and not in every one


def with_picture(row: Example, model: Backbone) -> Example:
    """The row behind four visual tokens."""
    features = torch.randn(4, model.picture_width, generator=torch.Generator().manual_seed(int(row.sample_id)))
    places = torch.full((4,), model.family.image_token_id)
    return replace(
        row,
        pictures=(cached(features),),
        input_ids=torch.cat([places, row.input_ids]),
        labels=torch.cat([torch.full((4,), IGNORE), row.labels]),
    )


def examples() -> list[Example]:
    """Eight rows of different lengths and different numbers of answer tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(GLOBAL_BATCH):
        length = int(torch.randint(8, 14, (1,), generator=generator))
        ids = torch.randint(5, 60, (length,), generator=generator)
        labels = torch.where(torch.arange(length) < length // 2, torch.tensor(IGNORE), ids)
        rows.append(Example(sample_id=str(index), instruction=INSTRUCTIONS[index % 2], input_ids=ids, labels=labels))
    return rows


def learned(job: Job, rank: int) -> list[float]:
    """The losses of one job on one worker."""
    backbone = BackboneConfig(name="pocket", gradient_checkpointing=job.checkpointing)
    if job.compute is not None:
        backbone = replace(backbone, dtype="bfloat16", adapter_compute=job.compute)
    model = load_backbone(backbone)
    method = job.method.build(seed=0)
    begun = None if job.since is None else Left.read(job.left_at(job.since))
    method.attach(model, None if begun is None else begun.before)
    micro = GLOBAL_BATCH // (job.world_size * job.accumulation)
    rows, losses, norms = examples(), [], []
    if job.pictures:
        rows = [with_picture(row, model) if index in PICTURED else row for index, row in enumerate(rows)]
    batches = [
        collate(rows[start : start + micro], pad_id=0, padding_side="right")
        for start in range(rank * micro, GLOBAL_BATCH, micro * job.world_size)
    ]

    def build() -> Engine:
        if job.stage is None:
            return TorchEngine(model, OPTIMIZER, rates=method.learning_rates(), accumulation=job.accumulation)
        return DeepSpeedEngine(
            model,
            OPTIMIZER,
            zero_stage=job.stage,  # type: ignore[arg-type]
            micro_batch_size=micro,
            accumulation=job.accumulation,
            rates=method.learning_rates(),
        )

    for index in range(0 if job.since is None else job.since.task, 2):
        before = method.state_dict(model)
        task = TaskInfo(index=index, name=f"task{index}", instructions=[INSTRUCTIONS[index]])
        method.begin_task(model, task)
        method.calibrate(model, task, iter(batches), mean_over_workers)
        if begun is not None:
            load_parameters(trainable_parameters(model), begun.values)
            method.load_task_state(begun.in_task)
        engine = build()
        first = 0
        if begun is not None and job.since is not None:
            engine.load_optimizer_state(begun.moments)
            begun, before, first = None, begun.before, job.since.update
        for update in range(first, UPDATES):
            if job.until is not None and job.until == Mark(task=index, update=update):
                moments = engine.optimizer_state()
                with engine.full_parameters(method.parameters().values()):
                    values = copy_tensors(trainable_parameters(model))
                if rank == 0:
                    left = Left(before=before, values=values, in_task=method.task_state(), moments=moments)
                    left.write(job.left_at(job.until))
                engine.close()
                return losses
            if update == job.interrupt_at:
                moments = engine.optimizer_state()
                with engine.full_parameters(method.parameters().values()):
                    values = copy_tensors(trainable_parameters(model))
                engine.close()
                with torch.no_grad():
                    for parameter in trainable_parameters(model).values():
                        parameter.zero_()
                load_parameters(trainable_parameters(model), values)
                engine = build()
                engine.load_optimizer_state(moments)
            engine.set_learning_rate(OPTIMIZER.rate_at(update, UPDATES))
            model.train()
            counts = [int((batch.labels[:, 1:] != IGNORE).sum()) for batch in batches]
            total = float(mean_over_workers({"n": torch.tensor(float(sum(counts)))})["n"]) / len(batches)
            value, stepped = torch.zeros(()), False
            for batch, count in zip(batches, counts, strict=True):
                with ExitStack() as scope:
                    enter = functools.partial(scope.enter_context, method.select(model, batch))
                    outputs, selection = engine.forward(batch, enter)
                    loss = method.loss(model, batch, outputs, selection).total * (count / total)
                    engine.backward(loss)
                value += loss.detach() / len(batches)
                stepped = method.step(engine)
            assert stepped
            norms.append(float(engine.grad_norm))
            losses.append(float(mean_over_workers({"loss": value})["loss"]))
        engine.close()
        method.end_task(engine, task, iter(batches))
        model.eval()
        everything = collate(rows, pad_id=0, padding_side="right")
        if job.method.needs_task_id:
            everything = replace(everything, oracle_task=task.name)
        with torch.no_grad(), method.select(model, everything):
            losses.append(float(model(everything).loss))
    return losses + norms * job.norms
