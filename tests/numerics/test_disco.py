"""DISCO on pocket: identity tokens, weights and outputs against written-out loops and hand-merged models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest
import torch
from prompt_tasks import cosine
from prototype_stream import (
    TASKS,
    hand_merged,
    in_each_layer,
    learn,
    learned,
    logits_by_row,
    mean,
    memories_of_two_workers,
    mixed_batch,
    softmax,
    task_batch,
    task_info,
    text_features,
)
from small_stream import batch_of, pocket
from torch import Tensor

from components.data.batch import Batch
from components.methods.base import copy_tensors
from components.methods.common.prototypes import PrototypeBranches
from components.methods.disco import DiscoConfig
from components.models.backbone import Backbone

TINY = DiscoConfig(rank=4, alpha=8.0, sentence_encoder="hash")


def cosines(method: PrototypeBranches, batch: Batch) -> list[list[float]]:
    return [[cosine(text, token) for token in method.memory["text"]] for text in text_features(method, batch)]


def merged_with(method: PrototypeBranches, weights: Sequence[float]) -> Backbone:
    """The plain model with every layer's branches added up by hand; alpha / R is 2."""
    increments: dict[str, Tensor] = {}
    for index, weight in enumerate(weights):
        for name, (up, down) in in_each_layer(method, index).items():
            increments[name] = increments.get(name, torch.zeros(())) + 2.0 * weight * (up @ down)
    return hand_merged(increments)


@pytest.mark.parametrize("prototype", ["unit", "raw"])
def test_identity_tokens_are_the_mean_text_features_of_the_tasks_samples(prototype: Literal["unit", "raw"]) -> None:
    method, _ = learned(replace(TINY, prototype=prototype))
    assert set(method.memory) == {"text"}  # pictures play no part
    expected = [mean(text_features(method, task_batch(name)), unit=prototype == "unit") for name in TASKS]
    torch.testing.assert_close(method.memory["text"].double(), torch.stack(expected), rtol=1e-5, atol=1e-7)


def test_two_workers_with_unequal_shares_find_the_identity_token_of_one() -> None:
    method, _ = learned(TINY, num_tasks=1)
    for memory in memories_of_two_workers(TINY, "names", ([0], [1, 2, 3])):
        torch.testing.assert_close(memory["text"], method.memory["text"], rtol=1e-6, atol=1e-8)


def test_softmax_weights_by_a_written_loop() -> None:
    method, backbone = learned(TINY)
    batch = mixed_batch()
    expected = [softmax(row, 0.05) for row in cosines(method, batch)]
    weights = method.weights(backbone, batch)
    torch.testing.assert_close(weights.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-6)
    assert all(min(row) > 0 for row in expected)  # no sub-space is left out
    with method.select(backbone, batch) as selection:
        assert selection.routed_to == [list(TASKS)[row.index(max(row))] for row in expected]


def test_the_nearest_sub_space_serves_alone() -> None:
    method, backbone = learned(replace(TINY, activation="nearest"))
    batch = batch_of("others")
    rows = cosines(method, batch)
    expected = [[float(value == max(row)) for value in row] for row in rows]
    assert method.weights(backbone, batch).tolist() == expected
    assert len({tuple(row) for row in expected}) > 1  # the samples do differ


@pytest.mark.parametrize("activation", ["softmax", "nearest"])
def test_a_mixed_batch_answers_as_a_model_merged_by_hand_for_every_sample(
    activation: Literal["softmax", "nearest"],
) -> None:
    method, backbone = learned(replace(TINY, activation=activation))
    batch = batch_of("others")
    together = logits_by_row(method, backbone, batch)
    singles = list(batch.singles())
    for single, row, found in zip(singles, cosines(method, batch), together, strict=True):
        weights = softmax(row, 0.05) if activation == "softmax" else [float(value == max(row)) for value in row]
        with torch.no_grad():
            expected = merged_with(method, weights)(single).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits_by_row(method, backbone, single)[0], found, rtol=1e-5, atol=1e-5)


def test_the_first_task_alone_takes_all_the_weight() -> None:
    method, backbone = learned(TINY, num_tasks=1)
    assert method.weights(backbone, mixed_batch()).tolist() == [[1.0]] * 4


def test_while_a_task_trains_its_sub_space_alone_serves() -> None:
    method, backbone = learned(TINY, num_tasks=2)
    batch = mixed_batch()
    method.begin_task(backbone, task_info("words"))  # its branch adds nothing yet
    with torch.no_grad():
        expected = pocket().eval()(batch).logits
    assert torch.equal(torch.cat(logits_by_row(method, backbone, batch)), expected)


def test_the_oracle_forgets_nothing_bit_for_bit() -> None:
    method, backbone = learned(TINY, num_tasks=1)
    told = replace(mixed_batch(), oracle_task="names")
    right_after = torch.cat(logits_by_row(method, backbone, told))
    branches, tokens = copy_tensors(method.parameters()), method.memory["text"].clone()
    for name in ("others", "words"):
        learn(method, backbone, name)
    assert torch.equal(torch.cat(logits_by_row(method, backbone, told)), right_after)
    assert all(torch.equal(method.parameters()[name], value) for name, value in branches.items())
    assert torch.equal(method.memory["text"][:1], tokens)
    untold = torch.cat(logits_by_row(method, backbone, mixed_batch()))
    assert (untold - right_after).abs().max() > 1e-3  # routing by likeness does not give all weight to one
