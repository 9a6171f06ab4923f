"""Two tasks of four rows on the pocket model, half of the first one's with a picture, and a loop to learn them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache, partial

import torch
from PIL import Image

from components.data.batch import Batch, collate
from components.data.rows import IMAGE_TOKEN, Row, Turn
from components.methods.base import Method, MethodConfig, MethodState, TaskInfo
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from components.training.engine import TorchEngine, mean_over_workers
from components.training.optimizer import OptimizerConfig

# Question, answer, colour of the picture. The second task gives known questions other answers: learning it hurts.
TASKS = {
    "names": [
        ("What colour is it?", "red", (220, 30, 30)),
        ("Name the opposite of up.", "down", None),
        ("What colour is it?", "blue green", (30, 60, 220)),
        ("Is it yes or no?", "yes", None),
    ],
    "others": [
        ("What colour is it?", "left", (30, 180, 40)),
        ("Name the opposite of up.", "small", None),
        ("Name the first number.", "one", None),
        ("Is it yes or no?", "no", None),
    ],
}


def info(name: str) -> TaskInfo:
    questions = [question for question, _, _ in TASKS[name]]
    return TaskInfo(index=list(TASKS).index(name), name=name, instructions=questions)


@cache
def encoder() -> Encoder:
    return build_encoder(BackboneConfig(name="pocket"))


def batch_of(name: str, rows: Sequence[int] = (0, 1, 2, 3)) -> Batch:
    """The task's rows as one training batch."""
    examples = []
    for index in rows:
        question, answer, colour = TASKS[name][index]
        stream = io.BytesIO()
        if colour is not None:
            Image.new("RGB", (64, 64), colour).save(stream, format="PNG")
        turns = (
            Turn(speaker="human", text=question if colour is None else f"{IMAGE_TOKEN}\n{question}"),
            Turn(speaker="gpt", text=answer),
        )
        row = Row(
            sample_id=f"{name}-{index}",
            task=name,
            split="train",
            turns=turns,
            answers=(answer,),
            metric="exact",
            source="test",
            image=stream.getvalue() or None,
            width=None if colour is None else 64,
            height=None if colour is None else 64,
        )
        examples.append(encoder().training_example(row))
    return collate(examples, pad_id=encoder().pad_id, padding_side="right")


def pocket(*, gradient_checkpointing: bool = False) -> Backbone:
    return load_backbone(BackboneConfig(name="pocket", gradient_checkpointing=gradient_checkpointing))


def attached(config: MethodConfig, backbone: Backbone, state: MethodState | None = None) -> Method:
    method = config.build(seed=0)
    method.attach(backbone, state)
    return method


def learn(
    method: Method, backbone: Backbone, name: str, *, updates: int = 6, rate: float = 1e-2, batches: int = 1
) -> list[float]:
    """One task from its beginning to its end; the loss of every update. `end_task` gets the rows in `batches` parts."""
    method.begin_task(backbone, info(name))
    method.calibrate(backbone, info(name), iter([batch_of(name)]), mean_over_workers)
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=rate))
    losses = train(method, engine, name, updates=updates)
    size = len(TASKS[name]) // batches
    parts = [batch_of(name, range(start, start + size)) for start in range(0, len(TASKS[name]), size)]
    method.end_task(engine, info(name), iter(parts))
    engine.close()
    backbone.eval()
    return losses


def train(method: Method, engine: TorchEngine, name: str, *, updates: int) -> list[float]:
    """Updates of a task that was begun."""
    batch, losses = batch_of(name), []
    engine.model.train()
    for _ in range(updates):
        with ExitStack() as scope:
            enter = partial(scope.enter_context, method.select(engine.model, batch))
            outputs, selection = engine.forward(batch, enter)
            loss = method.loss(engine.model, batch, outputs, selection)
            engine.backward(loss.total)
        assert method.step(engine)
        losses.append(float(loss.total.detach()))
    return losses


def task_loss(method: Method, backbone: Backbone, name: str) -> float:
    """The language-model loss on a task's rows."""
    batch = batch_of(name)
    backbone.eval()
    with torch.no_grad(), method.select(backbone, batch):
        return float(backbone(batch).loss)
