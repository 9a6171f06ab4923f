"""A method learns rows of two pictures, where their order alone tells the answer."""

from __future__ import annotations

from dataclasses import replace

import torch
from toy_tasks import attached, colour_row, fresh_backbone, learn, tiny_config, toy

from components.data.rows import IMAGE_TOKEN, Row, RowPicture, Turn
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder


def first_of(*names: str) -> Row:
    """A row that shows two colours and asks for the first one."""
    first, second = map(colour_row, names)
    question = f"{IMAGE_TOKEN}\n{IMAGE_TOKEN}\nWhat colour comes first?"
    return replace(
        first,
        sample_id="-".join(names),
        turns=(Turn(speaker="human", text=question), Turn(speaker="gpt", text=names[0])),
        more_images=(RowPicture(second.image, second.width, second.height),),
    )


def test_the_order_of_pictures_is_learned() -> None:
    rows = [first_of("red", "blue"), first_of("blue", "red"), first_of("green", "red"), first_of("red", "green")]
    encoder = build_encoder(BackboneConfig(name="pocket"))
    task, model = toy(0, "first", rows, encoder), fresh_backbone()
    assert [len(shown) for shown in task.batch.pictures] == [2] * 4
    assert torch.equal(task.prompts.input_ids[0], task.prompts.input_ids[1])  # the words do not tell
    method = attached(tiny_config("sequential_lora"), model)
    losses = learn(method, model, task, updates=120, rate=1e-2)
    assert losses[-1] < 0.1 * losses[0]
    with method.select(model, task.prompts):
        replies = model.generate(task.prompts, max_new_tokens=6)
    assert [encoder.decode(reply) for reply in replies] == ["red", "blue", "green", "red"]
