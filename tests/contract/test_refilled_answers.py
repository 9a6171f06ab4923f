"""Replies of rows that take the places of others, against transformers' own `generate`, which gets one row alone."""

from __future__ import annotations

from functools import partial
from typing import cast

import pytest
import torch
from test_answers_one_by_one import TIMES, many, one_by_one
from test_option_scores import mixed
from test_reuse import Memory, said
from toy_tasks import Toy, attached, fresh_backbone, learn, tiny_config

from components.data.batch import Limits
from components.methods.base import Selection


@pytest.mark.every_method
def test_rows_that_take_free_places_are_answered_as_alone(name: str, toys: list[Toy]) -> None:
    backbone = fresh_backbone()
    method = attached(tiny_config(name), backbone)
    for task in toys:
        learn(method, backbone, task, updates=10, rate=max(1e-2, method.config.default_learning_rate))
    backbone.eval()
    few = toys[0].prompts if method.config.needs_task_id else mixed(toys[1].prompts, toys[0].prompts)
    expected, prompts = one_by_one(backbone, method, few), many(few)
    with torch.inference_mode(), method.select(backbone, prompts):
        backbone.generate(prompts, max_new_tokens=8, rows_leave=True)
        whole = method.served(Selection()).slots
    widths: list[int] = []
    backbone.language_model.register_forward_pre_hook(
        lambda _module, _args, given: widths.append(len(given["inputs_embeds"])), with_kwargs=True
    )
    for limits in (Limits(5), Limits(64, 3 * (prompts.input_ids.shape[1] + 8)), Limits(1)):
        with torch.inference_mode(), method.select(backbone, prompts):
            widths.clear()  # a method may have passed all rows through the model to choose what serves them
            found = backbone.generate(prompts, max_new_tokens=8, rows_leave=True, refill=limits)
            parted = method.served(Selection()).slots
        assert found == expected * TIMES
        assert max(widths) <= limits.rows
        assert parted is None or torch.equal(parted, cast(torch.Tensor, whole))


@pytest.mark.every_method
def test_kept_replies_of_refilled_batches_are_those_that_would_be_computed(name: str, toys: list[Toy]) -> None:
    backbone = fresh_backbone().eval()
    method, toy, memory = attached(tiny_config(name), backbone), toys[0], Memory({})
    learn(method, backbone, toy, updates=2)
    backbone.eval()
    ask = partial(memory.answers, method, backbone, toy, oracle=method.is_routed)
    batches = ask(reuse=True)
    assert said(batches) == said(ask(reuse=False, refill=True))
    first, again = ask(reuse=True, refill=True), ask(reuse=True, refill=True)
    assert said(first) == said(again) == said(batches)
    assert all(one.kept is None for one in first), "rows that were answered in other batches"
    assert all(one.kept is not None for one in again)
