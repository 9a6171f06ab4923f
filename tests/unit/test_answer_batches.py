"""Batches of answers by rows and by tokens: which rows go together, and that replies and their order stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from components.data.batch import Example, batch_slices
from components.evaluation.generation import answer
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from tests.unit.sample_rows import row


@pytest.mark.parametrize(
    ("tokens", "parts"),
    [
        (None, [(0, 3), (3, 6)]),
        (100, [(0, 1), (1, 3), (3, 6)]),  # 90; 2 x 50; 3 x 20, where the rows end the batch
        (10, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]),  # nothing fits, so rows go alone
        (149, [(0, 1), (1, 3), (3, 6)]),
        (150, [(0, 1), (1, 4), (4, 6)]),
    ],
)
def test_a_batch_is_full_when_one_of_its_limits_is_reached(tokens: int | None, parts: list[tuple[int, int]]) -> None:
    found = list(batch_slices([90, 50, 50, 20, 20, 5], batch_size=3, batch_tokens=tokens))
    assert [(part.start, part.stop) for part in found] == parts


def test_replies_and_their_order_do_not_depend_on_the_batches() -> None:
    config = BackboneConfig(name="pocket")
    model, encoder = load_backbone(config), build_encoder(config)
    method = SequentialLoraConfig(rank=2).build(seed=0)
    method.attach(model, None)
    prompts: list[Example] = []
    for number, repeats in enumerate((3, 1, 9, 2, 6, 1)):
        prompt = encoder.prompt_example(row("Name it. " * repeats, "x"))
        prompts.append(replace(prompt, sample_id=str(number)))
    sizes: list[int] = []

    def replies(batch_size: int, batch_tokens: int | None) -> list[tuple[str, str]]:
        done: list[int] = []
        found = answer(
            model,
            method,
            encoder,
            prompts,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            max_new_tokens=6,
            device=torch.device("cpu"),
            progress=done.append,
        )
        sizes.append(len(done))
        assert done[-1] == len(prompts)
        return [(each.sample_id, each.text) for each in found]

    alone = replies(1, None)
    longest = max(len(prompt.input_ids) for prompt in prompts) + 6
    assert [name for name, _ in alone] == [str(number) for number in range(6)]
    assert any(text for _, text in alone)
    assert replies(6, 2 * longest) == alone
    assert replies(6, None) == alone
    assert sizes[0] == 6
    assert sizes[2] == 1
    assert 1 < sizes[1] < 6
