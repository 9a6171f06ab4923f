"""Log-likelihoods of options against a plain forward pass of prompt and option together, one option at a time.

The prompts' embeddings are ours on both sides, prompts of methods included; positions, masks and caches are not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast, get_args

import pytest
import torch
from test_answers_one_by_one import TIMES, many
from test_reuse import ENCODER, Memory, rows, said
from torch.nn import functional as F
from toy_tasks import Toy, attached, fresh_backbone, learn, tiny_config

from components.data.batch import IGNORE, Batch, Limits
from components.evaluation.choosing import Choosing, Option
from components.evaluation.replies import ChosenBy
from components.methods.base import Method
from components.models.backbone import Backbone
from components.models.decoding import PART

# By row; of one token, of several, and more rows with few options than with many.
OPTIONS = [[[70], [71, 72, 73]], [[74, 75], [76, 77], [70], [78, 79, 80, 81]], [[90, 91]], [[65], [66], [67]]]


def unpadded(row: Batch) -> Batch:
    held = row.attention_mask[0].bool()
    ids, mask, labels = (tensor[:, held] for tensor in (row.input_ids, row.attention_mask, row.labels))
    return replace(row, input_ids=ids, attention_mask=mask, labels=labels)


def plain_forward(model: Backbone, method: Method, row: Batch, option: list[int]) -> float:
    """One row and one option, read at once by transformers' own model."""
    row = unpadded(row)
    with torch.inference_mode(), method.select(model, row):
        inputs = model.inputs(row)
        # What serves a row may follow from its prompt, so an adapter sees that alone first.
        model.decode(inputs.embeddings, model.family.call(model.model, inputs), use_cache=False)
        behind = model.language_model.get_input_embeddings()(torch.tensor([option]))
        both = torch.cat([inputs.embeddings, behind], dim=1)
        logits = cast(Any, model.model)(inputs_embeds=both, use_cache=False).logits[0]
    places = torch.arange(inputs.mask.shape[1] - 1, both.shape[1] - 1)
    return float(logits[places].double().log_softmax(dim=-1)[range(len(option)), option].sum())


def mixed(first: Batch, second: Batch) -> Batch:
    """The rows of both, so that not all of them are served by the same parameters."""
    width = max(first.input_ids.shape[1], second.input_ids.shape[1])

    def both(name: str, fill: int) -> torch.Tensor:
        parts = [getattr(batch, name) for batch in (first, second)]
        return torch.cat([F.pad(part, (width - part.shape[1], 0), value=fill) for part in parts])

    return replace(
        first,
        sample_ids=[*first.sample_ids, *second.sample_ids],
        instructions=[*first.instructions, *second.instructions],
        input_ids=both("input_ids", 0),
        attention_mask=both("attention_mask", 0),
        labels=both("labels", IGNORE),
        pictures=[*first.pictures, *second.pictures],
        known_places=None,
    )


@pytest.mark.every_method
def test_options_score_as_prompt_and_option_read_together(name: str, toys: list[Toy]) -> None:
    backbone = fresh_backbone()
    method = attached(tiny_config(name), backbone)
    for task in toys:
        learn(method, backbone, task, updates=4, rate=max(1e-2, method.config.default_learning_rate))
    backbone.eval()
    told = method.config.needs_task_id  # the same for a whole batch
    few = toys[0].prompts if told else mixed(toys[1].prompts, toys[0].prompts)
    options = OPTIONS if told else [*OPTIONS, *reversed(OPTIONS)]
    alone = [
        [plain_forward(backbone, method, row, option) for option in of]
        for row, of in zip(few.singles(), options, strict=True)
    ]
    prompts = many(few)
    assert prompts.input_ids.numel() > PART, "the prompts would be read at once"

    def scored(batch: Batch, of: list[list[list[int]]], limits: Limits, *, leave: bool) -> list[list[float]]:
        with torch.inference_mode(), method.select(backbone, batch):
            return backbone.log_likelihoods(batch, of, limits=limits, rows_leave=leave)

    for limits in (Limits(64), Limits(64, 2 * prompts.input_ids.shape[1] + 9)):
        close(scored(prompts, options * TIMES, limits, leave=True), alone * TIMES)
    close(scored(prompts, options * TIMES, Limits(64), leave=False), alone * TIMES)
    for row, of, expected in zip(few.singles(), options, alone, strict=True):
        close(scored(row, [of], Limits(5), leave=True), [expected])
    row = next(few.singles())
    long = [65 + number % 26 for number in range(row.input_ids.shape[1] + 1)]  # read in a pass as long as its prompt's
    close(scored(row, [[long]], Limits(1), leave=True), [[plain_forward(backbone, method, row, long)]])


@pytest.mark.every_method
def test_kept_choices_are_those_that_would_be_made(name: str, toys: list[Toy]) -> None:
    backbone = fresh_backbone().eval()
    method, toy = attached(tiny_config(name), backbone), toys[0]
    learn(method, backbone, toy, updates=2)
    backbone.eval()
    texts = ["red", "a very dark green", "blue", "yellow"]
    closed = rows(toy)[1:]  # the first row is open
    options = {row.sample_id: [Option(text, tuple(ENCODER.reply_ids(row, text))) for text in texts] for row in closed}
    memory = Memory({})
    for by in get_args(ChosenBy):
        choosing = Choosing(by=by, options=options)
        ask = partial(memory.answers, method, backbone, toy, oracle=method.is_routed, choosing=choosing)
        plain, first, again = (ask(reuse=reuse) for reuse in (False, True, True))
        assert said(first) == said(again) == said(plain)
        # What another rule chose is not taken; the open row is the same under both.
        assert [one.kept is not None for one in first] == [by == "acc_norm", False, False, False]
        assert all(one.kept is not None for one in again)
        assert [one.log_likelihoods is not None for one in again] == [False, True, True, True]
        if method.is_routed:
            assert [one.oracle_log_likelihoods is not None for one in again] == [False, True, True, True]


def close(found: list[list[float]], expected: list[list[float]]) -> None:
    assert [len(of) for of in found] == [len(of) for of in expected]
    for of, wanted in zip(found, expected, strict=True):
        assert of == pytest.approx(wanted, abs=2e-4)
