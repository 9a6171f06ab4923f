"""Replies of a batch whose rows leave it one by one, against transformers' own `generate`, which gets one row alone.

The rows' embeddings are ours on both sides, prompts of methods included; decoding, cache and masks are not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from toy_tasks import Toy, attached, fresh_backbone, learn, tiny_config

from components.data.batch import Batch
from components.methods.base import Method, Selection
from components.models.backbone import Backbone
from components.models.decoding import PART

NEW_TOKENS = 8
TIMES = 8  # prompts of the toy tasks are few


def many(batch: Batch) -> Batch:
    """The rows `TIMES` over."""
    return replace(
        batch,
        sample_ids=batch.sample_ids * TIMES,
        instructions=batch.instructions * TIMES,
        input_ids=batch.input_ids.repeat(TIMES, 1),
        attention_mask=batch.attention_mask.repeat(TIMES, 1),
        labels=batch.labels.repeat(TIMES, 1),
        pictures=[*batch.pictures] * TIMES,
        known_places=None,
    )


def one_by_one(model: Backbone, method: Method, batch: Batch) -> list[list[int]]:
    found: list[list[int]] = []
    for row in batch.singles():
        held = row.attention_mask[0].bool()  # transformers alone would see padding
        assert bool(held[held.int().argmax() :].all())
        with torch.inference_mode(), method.select(model, row):
            inputs = model.inputs(row)
            whole = cast(Any, model.model).generate(
                inputs_embeds=inputs.embeddings,
                attention_mask=inputs.mask,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=model.end_ids(),
                pad_token_id=model.end_ids()[0],
            )
        ids = whole[0].tolist()
        stops = [place for place, token in enumerate(ids) if token in model.end_ids()]
        found.append(ids[: stops[0]] if stops else ids)
    return found


@pytest.mark.every_method
def test_rows_that_leave_a_batch_are_answered_as_alone(name: str, toys: list[Toy]) -> None:
    backbone = fresh_backbone()
    method = attached(tiny_config(name), backbone)
    for task in toys:
        learn(method, backbone, task, updates=10, rate=max(1e-2, method.config.default_learning_rate))
    assert method.rows_leave, "a method of ours whose rows cannot leave"
    backbone.eval()
    for task in toys:
        prompts = many(task.prompts)
        assert prompts.input_ids.numel() > PART, "the prompts would be read at once"
        with torch.inference_mode(), method.select(backbone, prompts):
            together = backbone.generate(prompts, max_new_tokens=NEW_TOKENS, rows_leave=True)
            parted = method.served(Selection()).slots
        with torch.inference_mode(), method.select(backbone, prompts):
            staying = backbone.generate(prompts, max_new_tokens=NEW_TOKENS)
            whole = method.served(Selection()).slots
        assert together == staying == one_by_one(backbone, method, task.prompts) * TIMES
        assert (parted is None) == (whole is None)
        assert parted is None or torch.equal(parted, cast(torch.Tensor, whole))
