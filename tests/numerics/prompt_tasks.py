"""What the tests of the three prompt methods share: worded tasks on pocket, short training, single rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from components.data.batch import Batch, collate
from components.data.rows import Row, Turn
from components.methods.base import Method, TaskInfo
from components.models.backbone import Backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from components.training.engine import TorchEngine
from components.training.optimizer import OptimizerConfig

SUBJECTS = {
    "charts": ["Which bar is the highest?", "What value has the red bar in the chart?", "How many bars are there?"],
    "forms": ["What is written in the date field?", "Who signed the form?", "What is the total on the page of it?"],
    "icons": ["Which icon comes next?", "How many icons of a cat are there?", "Is there a star among the icons?"],
}
ANSWERS = ("yes", "the red bar", "no")


def task(index: int) -> TaskInfo:
    name = list(SUBJECTS)[index]
    return TaskInfo(index=index, name=name, instructions=SUBJECTS[name])


def questions() -> list[str]:
    return [question for subject in SUBJECTS.values() for question in subject]


def encoder() -> Encoder:
    return build_encoder(BackboneConfig(name="pocket"))


def rows(texts: Sequence[str]) -> list[Row]:
    made = []
    for text in texts:
        turns = (Turn(speaker="human", text=text), Turn(speaker="gpt", text=ANSWERS[questions().index(text) % 3]))
        made.append(
            Row(sample_id=text, task="t", split="train", turns=turns, answers=("yes",), metric="exact", source="test")
        )
    return made


def training_batch(texts: Sequence[str], *, padding_side: str = "right") -> Batch:
    turn = encoder()
    examples = [turn.training_example(row) for row in rows(texts)]
    return collate(examples, pad_id=turn.pad_id, padding_side=padding_side)


def prompt_batch(texts: Sequence[str]) -> Batch:
    """Left-padded, to be answered."""
    turn = encoder()
    return collate([turn.prompt_example(row) for row in rows(texts)], pad_id=turn.pad_id, padding_side="left")


def learn(
    method: Method, backbone: Backbone, index: int, *, updates: int = 4, rate: float = 1e-2, accumulation: int = 1
) -> None:
    """Learn task `index` to its end, one batch of its three questions a micro-step."""
    info = task(index)
    batch = training_batch(info.instructions)
    method.begin_task(backbone, info)
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=rate), accumulation=accumulation)
    backbone.train()
    for _ in range(updates * accumulation):
        with ExitStack() as scope:
            enter = partial(scope.enter_context, method.select(backbone, batch))
            outputs, selection = engine.forward(batch, enter)
            engine.backward(method.loss(backbone, batch, outputs, selection).total)
        method.step(engine)
    method.end_task(engine, info, iter(()))
    engine.close()
    backbone.eval()


def answers_one_by_one(
    method: Method, backbone: Backbone, texts: Sequence[str], *, max_new_tokens: int
) -> list[list[int]]:
    replies = []
    for text in texts:
        alone = prompt_batch([text])
        with method.select(backbone, alone):
            replies += backbone.generate(alone, max_new_tokens=max_new_tokens)
    return replies


def cosine(one: Tensor, other: Tensor) -> float:
    """Written out, in double precision."""
    one, other = one.detach().double(), other.detach().double()
    return float((one * other).sum() / (torch.sqrt((one * one).sum()) * torch.sqrt((other * other).sum())))
