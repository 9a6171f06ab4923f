"""Small jobs without Ray: two tasks of a method on the pocket model, under any engine and world size."""

from __future__ import annotations

import functools
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from worker_processes import results_of

from components.data.batch import IGNORE, Example, collate
from components.methods.base import MethodConfig, TaskInfo, copy_tensors, load_parameters
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
class Job:
    """`stage` None is the plain torch engine. `interrupt_at`: leave and re-enter the engine before that update.

    `pictures`: some rows have one, so that a worker meets micro-batches with and without. `compute`: frozen weights in
    bfloat16, and adapters that compute so. `norms`: after the losses, the norm of the gradient at every update.
    """

    stage: int | None
    world_size: int = 1
    accumulation: int = 1
    interrupt_at: int | None = None
    checkpointing: bool = False
    pictures: bool = False
    compute: Literal["float32", "bfloat16"] | None = None
    norms: bool = False
    method: MethodConfig = field(default_factory=lambda: SequentialLoraConfig(rank=4))


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
    method.attach(model, None)
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

    for index in range(2):
        task = TaskInfo(index=index, name=f"task{index}", instructions=[INSTRUCTIONS[index]])
        method.begin_task(model, task)
        method.calibrate(model, task, iter(batches), mean_over_workers)
        engine = build()
        for update in range(UPDATES):
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
            value = torch.zeros(())
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
