"""Small jobs without Ray: two tasks of a method on the pocket model, under any engine and world size."""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from components.data.batch import IGNORE, Example, collate
from components.methods.base import MethodConfig, SequentialLoraConfig, TaskInfo, copy_tensors, load_parameters
from components.models.backbone import Backbone, BackboneConfig, load_backbone
from components.training.engine import (
    DeepSpeedEngine,
    Engine,
    OptimizerConfig,
    TorchEngine,
    mean_over_workers,
    trainable_parameters,
)

GLOBAL_BATCH, UPDATES = 8, 5
INSTRUCTIONS = ("Read the chart.", "Name what you see.")  # of each task, and of every other row
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)


@dataclass(frozen=True, kw_only=True)
class Job:
    """`stage` None is the plain torch engine. `interrupt_at`: leave and re-enter the engine before that update.

    `pictures`: some rows have one, so that a worker meets micro-batches with and without.
    """

    stage: int | None
    world_size: int = 1
    accumulation: int = 1
    interrupt_at: int | None = None
    checkpointing: bool = False
    pictures: bool = False
    method: MethodConfig = field(default_factory=lambda: SequentialLoraConfig(rank=4))


def losses_of(jobs: Collection[Job]) -> dict[Job, list[float]]:
    """By job: losses of every update of both tasks, then each task's loss on the plain model after its engine closed.

    Jobs of one world size share their processes: imports take longer than a job.
    """
    found: dict[Job, list[float]] = {}
    for world_size in sorted({job.world_size for job in jobs}):
        found |= _started([job for job in jobs if job.world_size == world_size], world_size)
    return found


def _started(jobs: list[Job], world_size: int) -> dict[Job, list[float]]:
    context, port = mp.get_context("spawn"), free_port()
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(jobs, rank, port, results), daemon=True) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found: dict[Job, list[float]] = {}
    while len(found) < len(jobs) and all(process.exitcode in (None, 0) for process in processes):
        while not results.empty():
            job, losses = results.get()
            found[job] = losses
        time.sleep(0.05)
    for process in processes:
        process.join(timeout=60 if len(found) == len(jobs) else 5)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.terminate()
    unfinished = next((job for job in jobs if job not in found), None)
    assert unfinished is None, f"workers ended with {codes} in {unfinished}"
    assert codes == [0] * world_size
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PICTURED = (0, 3, 4)  # never both rows of a micro-batch of two, and not in every one


def with_picture(row: Example, model: Backbone) -> Example:
    """The row behind four visual tokens."""
    features = torch.randn(4, model.vision_channels, generator=torch.Generator().manual_seed(int(row.sample_id)))
    places = torch.full((4,), model.image_token_id)
    return replace(
        row,
        features=features,
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


def _work(jobs: list[Job], rank: int, port: int, results: mp.SimpleQueue) -> None:  # type: ignore[type-arg]
    world_size = jobs[0].world_size
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    # A job that a worker leaves the others waiting in fails after this long.
    dist.init_process_group("gloo", rank=rank, world_size=world_size, timeout=timedelta(seconds=240))
    for job in jobs:
        losses = _learned(job, rank)
        if rank == 0:
            results.put((job, losses))
    dist.barrier()
    dist.destroy_process_group()


def _learned(job: Job, rank: int) -> list[float]:
    model = load_backbone(BackboneConfig(name="pocket", gradient_checkpointing=job.checkpointing))
    method = job.method.build(seed=0)
    method.attach(model, None)
    micro = GLOBAL_BATCH // (job.world_size * job.accumulation)
    rows, losses = examples(), []
    if job.pictures:
        rows = [with_picture(row, model) if index in PICTURED else row for index, row in enumerate(rows)]
    batches = [
        collate(rows[start : start + micro], pad_id=0, padding_side="right")
        for start in range(rank * micro, GLOBAL_BATCH, micro * job.world_size)
    ]

    def build() -> Engine:
        if job.stage is None:
            return TorchEngine(model, OPTIMIZER, accumulation=job.accumulation)
        return DeepSpeedEngine(
            model,
            OPTIMIZER,
            zero_stage=job.stage,  # type: ignore[arg-type]
            micro_batch_size=micro,
            accumulation=job.accumulation,
        )

    for index in range(2):
        task = TaskInfo(index=index, name=f"task{index}", instructions=[INSTRUCTIONS[index]])
        method.begin_task(model, task)
        method.survey(model, task, iter(batches), mean_over_workers)
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
            losses.append(float(mean_over_workers({"loss": value})["loss"]))
        engine.close()
        method.end_task(engine, task, iter(batches))
        model.eval()
        everything = collate(rows, pad_id=0, padding_side="right")
        if job.method.needs_task_id:
            everything = replace(everything, oracle_task=task.name)
        with torch.no_grad(), method.select(model, everything):
            losses.append(float(model(everything).loss))
    return losses
