"""Two toy tasks on the pocket backbone: colours of pictures, and opposites in plain text."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image

from components.data.batch import Batch, collate
from components.data.rows import IMAGE_TOKEN, Row, Turn
from components.methods import method_config
from components.methods.base import Method, MethodConfig, MethodState, TaskInfo
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from components.training.engine import TorchEngine, mean_over_workers
from components.training.optimizer import OptimizerConfig

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 60, 220), "yellow": (230, 220, 40)}
OPPOSITES = {"left": "right", "up": "down", "yes": "no", "small": "large"}


@dataclass(frozen=True, kw_only=True)
class Toy:
    """One task as a method and a model see it."""

    info: TaskInfo
    batch: Batch  # right-padded, with labels
    prompts: Batch  # left-padded, to be answered


def colour_row(name: str) -> Row:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), COLOURS[name]).save(stream, format="PNG")
    return Row(
        sample_id=f"colour-{name}",
        task="colours",
        split="train",
        turns=(
            Turn(speaker="human", text=f"{IMAGE_TOKEN}\nWhat colour fills the {name} picture?"),
            Turn(speaker="gpt", text=name),
        ),
        answers=(name,),
        metric="exact",
        source="test",
        image=stream.getvalue(),
        width=64,
        height=64,
    )


def opposite_row(word: str, image: bytes | None = None) -> Row:
    question = f"Name the opposite of {word}."
    turns = (
        Turn(speaker="human", text=question if image is None else f"{IMAGE_TOKEN}\n{question}"),
        Turn(speaker="gpt", text=OPPOSITES[word]),
    )
    return Row(
        sample_id=f"opposite-{word}",
        task="opposites",
        split="train",
        turns=turns,
        answers=(OPPOSITES[word],),
        metric="exact",
        source="test",
        image=image,
        width=None if image is None else 64,
        height=None if image is None else 64,
    )


def toy(index: int, name: str, rows: list[Row], encoder: Encoder, *, rank: int = 0, world_size: int = 1) -> Toy:
    """The task, with the rows of one of several workers in its batches."""
    instructions = [row.instruction for row in rows]
    rows = rows[rank::world_size]
    training = [encoder.training_example(row) for row in rows]
    prompts = [encoder.prompt_example(row) for row in rows]
    return Toy(
        info=TaskInfo(index=index, name=name, instructions=instructions),
        batch=collate(training, pad_id=encoder.pad_id, padding_side="right"),
        prompts=collate(prompts, pad_id=encoder.pad_id, padding_side="left"),
    )


def toy_tasks(*, pictured: bool = False) -> list[Toy]:
    """Both tasks, in their order; `pictured` gives the second one's rows coloured pictures too."""
    return share_of_toy_tasks(0, 1, pictured=pictured)


def share_of_toy_tasks(rank: int, world_size: int, *, pictured: bool = False) -> list[Toy]:
    """Both tasks as one of several workers sees them."""
    encoder = build_encoder(BackboneConfig(name="pocket"))
    images = [colour_row(name).image if pictured else None for name in COLOURS]
    rows = {
        "colours": [colour_row(name) for name in COLOURS],
        "opposites": [opposite_row(word, image) for word, image in zip(OPPOSITES, images, strict=True)],
    }
    return [toy(index, name, rows[name], encoder, rank=rank, world_size=world_size) for index, name in enumerate(rows)]


def told(toy: Toy) -> Toy:
    """The task with its name in its batches."""
    return replace(
        toy,
        batch=replace(toy.batch, oracle_task=toy.info.name),
        prompts=replace(toy.prompts, oracle_task=toy.info.name),
    )


def fresh_backbone(*, gradient_checkpointing: bool = False) -> Backbone:
    return load_backbone(BackboneConfig(name="pocket", gradient_checkpointing=gradient_checkpointing))


def tiny_config(name: str) -> MethodConfig:
    """The method with its options for tests."""
    return method_config(name).tiny()


def attached(config: MethodConfig, backbone: Backbone, state: MethodState | None = None, *, seed: int = 0) -> Method:
    method = config.build(seed=seed)
    method.attach(backbone, state)
    backbone.to(backbone.device)  # what the method has added may still be on the CPU
    return method


def logits(method: Method, model: Backbone, batch: Batch) -> torch.Tensor:
    model.eval()
    with torch.no_grad(), method.select(model, batch):
        return model(batch).logits


def calibrate(method: Method, model: Backbone, task: Toy) -> None:
    """Let a method look at the task that was begun."""
    method.calibrate(model, task.info, iter([task.batch]), mean_over_workers)


def learn(
    method: Method,
    model: Backbone,
    task: Toy,
    *,
    updates: int,
    rate: float = 3e-3,
    watch: Callable[[TorchEngine], None] | None = None,
) -> list[float]:
    """Train one task to its end with the plain engine; the loss of every update."""
    method.begin_task(model, task.info)
    model.to(model.device)
    if not method.is_trainable:
        method.end_task(None, task.info, iter(()))
        return []
    calibrate(method, model, task)
    engine = TorchEngine(model, OptimizerConfig(learning_rate=rate))
    model.train()
    losses = []
    for _ in range(updates):
        with ExitStack() as scope:
            enter = partial(scope.enter_context, method.select(model, task.batch))
            outputs, selection = engine.forward(task.batch, enter)
            loss = method.loss(model, task.batch, outputs, selection)
            engine.backward(loss.total)
        if watch is not None:
            watch(engine)
        assert method.step(engine)
        losses.append(float(loss.total.detach()))
    method.end_task(engine, task.info, iter([task.batch]))
    engine.close()
    model.eval()
    return losses
