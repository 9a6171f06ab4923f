"""What the tests of methods with task prototypes share: three tasks on pocket, written-out means, two workers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from small_stream import attached, batch_of, info, pocket, train
from torch import Tensor

from components.adapters.low_rank import BankedLinear
from components.data.batch import Batch
from components.methods.base import TaskInfo
from components.methods.common.prototypes import PrototypeBranches, PrototypeConfig
from components.models.backbone import Backbone
from components.training.engine import TorchEngine
from components.training.optimizer import OptimizerConfig
from tests.pictures import features_of

# name -> rows of small_stream: of the first task half have pictures, of the second one in four, of the third none
TASKS: dict[str, tuple[str, tuple[int, ...]]] = {
    "names": ("names", (0, 1, 2, 3)),
    "others": ("others", (0, 1, 2, 3)),
    "words": ("others", (2, 3)),
}


def task_info(name: str) -> TaskInfo:
    source, rows = TASKS[name]
    instructions = [info(source).instructions[row] for row in rows]
    return TaskInfo(index=list(TASKS).index(name), name=name, instructions=instructions)


def task_batch(name: str) -> Batch:
    return batch_of(*TASKS[name])


def learn(method: PrototypeBranches, backbone: Backbone, name: str) -> None:
    """One task from its beginning to its end, its rows one by one in the last pass."""
    source, rows = TASKS[name]
    method.begin_task(backbone, task_info(name))
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    train(method, engine, source, updates=4)
    method.end_task(engine, task_info(name), (batch_of(source, [row]) for row in rows))
    engine.close()
    backbone.eval()


def learned(config: PrototypeConfig, num_tasks: int = 3) -> tuple[PrototypeBranches, Backbone]:
    """The method after the first tasks."""
    backbone = pocket()
    method = attached(config, backbone)
    assert isinstance(method, PrototypeBranches)
    for name in list(TASKS)[:num_tasks]:
        learn(method, backbone, name)
    return method, backbone


def mixed_batch() -> Batch:
    """Rows of the first task: with a picture, without, with another picture, without."""
    return task_batch("names")


def text_features(method: PrototypeBranches, batch: Batch) -> list[Tensor]:
    return [method.encoder.encode([text])[0].double() for text in batch.instructions]


def picture_of(backbone: Backbone, single: Batch) -> Tensor | None:
    """The mean over visual tokens of the only sample's picture, token by token."""
    if not single.flat_pictures:
        return None
    tokens = features_of(backbone, single)[0].double()
    total = torch.zeros(tokens.shape[1], dtype=torch.float64)
    for token in tokens:
        total += token
    return total / len(tokens)


def mean(vectors: Sequence[Tensor], *, unit: bool) -> Tensor:
    """The mean vector, one addition after the other, of vectors as they are or at length 1."""
    total = torch.zeros_like(vectors[0])
    for vector in vectors:
        total += vector / torch.sqrt((vector * vector).sum()) if unit else vector
    return total / len(vectors)


def softmax(likeness: Sequence[float], temperature: float) -> list[float]:
    powers = torch.exp(torch.tensor(likeness, dtype=torch.float64) / temperature)
    return (powers / powers.sum()).tolist()


def in_each_layer(method: PrototypeBranches, index: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Branch `index` by layer: up and down in double precision."""
    values = method.parameters()
    return {
        name: (
            values[f"{name}.groups.{index}.up"].detach().double(),
            values[f"{name}.groups.{index}.down"].detach().double(),
        )
        for name in method.bank.layers
    }


def hand_merged(increments: Mapping[str, Tensor]) -> Backbone:
    """A plain pocket model with dense increments, by layer, added to its weights."""
    backbone = pocket()
    with torch.no_grad():
        for name, increment in increments.items():
            layer = backbone.get_submodule(name)
            assert isinstance(layer, torch.nn.Linear)
            assert not isinstance(layer, BankedLinear)
            layer.weight.copy_((layer.weight.double() + increment).float())
    return backbone.eval()


def logits_by_row(method: PrototypeBranches, backbone: Backbone, batch: Batch) -> list[Tensor]:
    """What the method predicts for every row of the batch, computed together."""
    with torch.no_grad(), method.select(backbone, batch):
        outputs = backbone(batch)
    return [outputs.logits[outputs.rows == row] for row in range(len(batch))]


class Exchange:
    """The mean over two workers that are threads of this process."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=60)
        self.given: dict[int, dict[str, Tensor]] = {}

    def mean(self, worker: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        self.given[worker] = tensors
        self.barrier.wait()
        return {name: (self.given[0][name] + self.given[1][name]) / 2 for name in tensors}


class WorkerEngine(TorchEngine):
    """One worker's engine, which averages with the other one through `exchange`."""

    def __init__(self, model: Backbone, exchange: Exchange, worker: int) -> None:
        super().__init__(model, OptimizerConfig(learning_rate=1e-2))
        self.exchange, self.worker = exchange, worker

    def mean_over_workers(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.exchange.mean(self.worker, tensors)


def memories_of_two_workers(
    config: PrototypeConfig, name: str, split: tuple[list[int], list[int]]
) -> list[dict[str, Tensor]]:
    """Task `name` ended on two workers, which have the rows of `split`; what each then remembers."""
    exchange, source = Exchange(), TASKS[name][0]
    task = replace(task_info(name), index=0)
    workers: list[tuple[PrototypeBranches, WorkerEngine, list[Batch]]] = []
    for worker, rows in enumerate(split):
        backbone = pocket()
        method = attached(config, backbone)
        assert isinstance(method, PrototypeBranches)
        method.begin_task(backbone, task)
        workers.append((method, WorkerEngine(backbone, exchange, worker), [batch_of(source, [row]) for row in rows]))
    threads = [
        threading.Thread(target=method.end_task, args=(engine, task, iter(batches)))
        for method, engine, batches in workers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [method.memory for method, _, _ in workers]
