"""Rows with options are answered by the likeliest of them, beside rows whose replies are generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from components.core.errors import ConfigError
from components.data.batch import Example
from components.data.rows import Row
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.evaluation.choosing import Choosing
from components.evaluation.generation import Answer, answer
from components.evaluation.replies import ChosenBy, likeliest
from components.methods.base import Method
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from components.training.config import EvaluationConfig, RunConfig
from components.training.plan import rows_with_options
from tests.unit.sample_rows import row

Asked = tuple[Backbone, Method, Encoder]
CPU = torch.device("cpu")
WORDS = "Which is it?\nA. red\nB. a very long green thing\nC. one"


def test_the_sum_decides_or_the_mean_over_characters() -> None:
    options, sums = ["no", "certainly", "yes"], [-2.0, -4.5, -2.1]
    assert likeliest("acc", options, sums) == 0
    assert likeliest("acc_norm", options, sums) == 1  # -1, -0.5, -0.7 a character
    assert likeliest("acc", options, [-3.0, -1.0, -1.0]) == 1


@pytest.fixture(scope="module")
def asked() -> Asked:
    config = BackboneConfig(name="pocket")
    model, encoder = load_backbone(config), build_encoder(config)
    method = SequentialLoraConfig(rank=2).build(seed=0)
    method.attach(model, None)
    return model, method, encoder


def rows() -> list[Row]:
    letters = WORDS + "\nReply with the letter."
    talks = [(letters, "C"), ("Name it. " * 6, "x"), (WORDS, "red"), ("Is it red?", "no"), ("Name it.", "x")]
    return [replace(row(*talk), sample_id=str(number)) for number, talk in enumerate(talks)]


OPTIONS: Mapping[str, list[str]] = {
    "0": ["A", "B", "C"],
    "2": ["red", "a very long green thing", "one"],
    "3": ["yes", "no"],
}


def examples(encoder: Encoder) -> list[Example]:
    return [encoder.prompt_example(one) for one in rows()]


def answers(asked: Asked, by: ChosenBy | None, size: int, tokens: int | None) -> list[Answer]:
    encoder = asked[-1]
    done: list[int] = []
    found = answer(
        *asked,
        examples(encoder),
        batch_size=size,
        batch_tokens=tokens,
        max_new_tokens=5,
        device=CPU,
        progress=done.append,
        choosing=None if by is None else Choosing.of(by, encoder, rows()),
    )
    assert done[-1] == len(found) == len(rows())
    assert done == sorted(done)
    return found


def by_hand(asked: Asked, one: Row, text: str) -> float:
    """Of the whole conversation that ends with `text`, as it would be learned; without what ends the answer."""
    model, _, encoder = asked
    prompt = encoder.prompt_example(one).input_ids
    whole = encoder.training_example(replace(one, turns=(one.turns[0], replace(one.turns[1], text=text)))).input_ids
    assert torch.equal(whole[: len(prompt)], prompt)
    whole = whole[: len(whole) - whole.flip(0).tolist().index(encoder.end_id) - 1]
    with torch.inference_mode():
        logits = model.model(input_ids=whole[None], use_cache=False).logits[0].double()
    places = torch.arange(len(prompt), len(whole))
    return float(logits[places - 1].log_softmax(dim=-1)[range(len(places)), whole[places]].sum())


@pytest.mark.parametrize(("size", "tokens"), [(1, None), (2, None), (16, None), (16, 150)])
def test_the_likeliest_option_is_the_reply(asked: Asked, size: int, tokens: int | None) -> None:
    plain = answers(asked, None, 1, None)
    for by in ("acc", "acc_norm"):
        found = answers(asked, by, size, tokens)
        assert [one.sample_id for one in found] == [one.sample_id for one in rows()]
        for one, other, asked_row in zip(found, plain, rows(), strict=True):
            options = OPTIONS.get(one.sample_id)
            if options is None:
                assert one == other  # generated, as without options
                assert one.options is one.log_likelihoods is None
                continue
            expected = [by_hand(asked, asked_row, text) for text in options]
            assert one.options == tuple(options)
            assert one.log_likelihoods == pytest.approx(expected, abs=1e-3)
            scores = [score / (1 if by == "acc" else len(text)) for score, text in zip(expected, options, strict=True)]
            assert one.text == options[scores.index(max(scores))]


def test_a_plan_counts_rows_with_options_and_refuses_a_stream_without_any() -> None:
    stream = open_stream(StreamConfig(name="mini-coin", size="nano"))
    texts = replace(stream, tasks=tuple(task for task in stream.tasks if task.name in ("scienceqa", "grounding")))
    chosen = RunConfig(run_id="r", evaluation=EvaluationConfig(replies="acc", limit=5))
    assert rows_with_options(chosen, texts, ()) == {"scienceqa": (5, 5), "grounding": (0, 5)}
    assert rows_with_options(replace(chosen, evaluation=EvaluationConfig()), texts, ()) == {}
    without = replace(texts, tasks=texts.tasks[1:])
    with pytest.raises(ConfigError, match=r"evaluation.replies acc chooses .* no row of grounding has any .*generated"):
        rows_with_options(chosen, without, ())
