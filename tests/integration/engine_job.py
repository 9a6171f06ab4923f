"""A small job without Ray: two tasks of a method on the pocket model, under any engine and world size."""

from __future__ import annotations

import functools
import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

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


def losses_of(job: Job) -> list[float]:
    """Losses of every update of both tasks, then each task's loss on the plain model after its engine was closed."""
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    port = free_port()
    processes = [context.Process(target=_work, args=(job, rank, port, results)) for rank in range(job.world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.terminate()
    assert codes == [0] * job.world_size, f"workers of {job} ended with {codes}"
    return results.get()


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
        rows.append(Example(sample_id=str(index), instruction="x", input_ids=ids, labels=labels))
    return rows


def _work(job: Job, rank: int, port: int, results: mp.SimpleQueue) -> None:  # type: ignore[type-arg]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=job.world_size)
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
        task = TaskInfo(index=index, name=f"task{index}", instructions=[f"question {index}"])
        method.begin_task(model, task)
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
        with torch.no_grad(), method.select(model, everything):
            losses.append(float(model(everything).loss))
    if rank == 0:
        results.put(losses)
    dist.barrier()
    dist.destroy_process_group()
