"""HiDe on pocket: prototypes, weights and both kinds of layers against written-out loops and hand-merged models."""

from __future__ import annotations

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
    picture_of,
    softmax,
    task_batch,
    task_info,
    text_features,
)
from small_stream import attached, pocket
from torch import Tensor

from components.core.errors import CheckpointError, ConfigError
from components.data.batch import Batch
from components.methods.base import MethodState, copy_tensors
from components.methods.common.prototypes import PrototypeBranches
from components.methods.hide import Hide, HideConfig
from components.models.backbone import Backbone
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig

TINY = HideConfig(rank=4, alpha=8.0, sentence_encoder="hash")
LAST = "model.model.language_model.layers.2.self_attn.o_proj"  # pocket has three decoder layers
Fusion = Literal["factors", "sum", "mean"]


def singles(backbone: Backbone, batch: Batch) -> list[Batch]:
    return list(batch.singles())


def expected_weights(method: PrototypeBranches, backbone: Backbone, batch: Batch) -> list[list[float]]:
    """The softmax of the mean of both cosines, or of the text's alone, task by task."""
    rows = []
    for text, single in zip(text_features(method, batch), singles(backbone, batch), strict=True):
        picture, likeness = picture_of(backbone, single), []
        for index in range(len(method.tasks)):
            text_cosine = cosine(text, method.memory["text"][index])
            prototype = method.memory["image"][index]
            if picture is None:
                likeness.append(text_cosine)
            else:
                likeness.append((text_cosine + (cosine(picture, prototype) if prototype.any() else 0.0)) / 2)
        rows.append(softmax(likeness, TINY.temperature))
    return rows


def general_increment(branches: list[tuple[Tensor, Tensor]], fusion: Fusion) -> Tensor:
    """What the tasks' (up, down) add to a layer that is not the last, without alpha / R."""
    if fusion == "factors":
        up, down = torch.zeros_like(branches[0][0]), torch.zeros_like(branches[0][1])
        for one, other in branches:
            up, down = up + one, down + other
        return up @ down
    total = sum((up @ down for up, down in branches), torch.zeros(()))
    return total if fusion == "sum" else total / len(branches)


@pytest.mark.parametrize("prototype", ["unit", "raw"])
def test_prototypes_are_the_means_over_the_tasks_samples(prototype: Literal["unit", "raw"]) -> None:
    method, backbone = learned(replace(TINY, prototype=prototype))
    assert method.memory["text"].shape == (3, 256)
    assert method.memory["image"].shape == (3, 48)
    for index, name in enumerate(TASKS):
        batch, unit = task_batch(name), prototype == "unit"
        text = mean(text_features(method, batch), unit=unit)
        torch.testing.assert_close(method.memory["text"][index].double(), text, rtol=1e-5, atol=1e-7)
        pictures = [picture_of(backbone, single) for single in singles(backbone, batch)]
        found = [picture for picture in pictures if picture is not None]
        assert len(found) == {"names": 2, "others": 1, "words": 0}[name]
        image = mean(found, unit=unit) if found else torch.zeros(48, dtype=torch.float64)
        torch.testing.assert_close(method.memory["image"][index].double(), image, rtol=1e-5, atol=1e-6)


def test_two_workers_with_unequal_shares_find_the_prototypes_of_one() -> None:
    method, _ = learned(TINY, num_tasks=1)
    for memory in memories_of_two_workers(TINY, "names", ([0, 1, 2], [3])):  # both pictures at the first worker
        assert memory.keys() == method.memory.keys()
        for kind, value in method.memory.items():
            torch.testing.assert_close(memory[kind], value, rtol=1e-6, atol=1e-8)


def test_weights_are_the_softmax_of_the_mean_cosines_and_name_the_task() -> None:
    method, backbone = learned(TINY)
    batch = mixed_batch()
    expected = expected_weights(method, backbone, batch)
    weights = method.weights(backbone, batch)
    torch.testing.assert_close(weights.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-6)
    assert len({round(row[0], 4) for row in expected}) == 4  # the samples do differ
    with method.select(backbone, batch) as selection:
        assert selection.routed_to == [list(TASKS)[max(range(3), key=lambda i, row=row: row[i])] for row in expected]


@pytest.mark.parametrize("fusion", ["factors", "sum", "mean"])
def test_a_mixed_batch_answers_as_a_model_merged_by_hand_for_every_sample(fusion: Fusion) -> None:
    method, backbone = learned(replace(TINY, fusion=fusion))
    batch = mixed_batch()
    branches = [in_each_layer(method, index) for index in range(3)]
    general = {
        name: 2.0 * general_increment([branch[name] for branch in branches], fusion)  # alpha / R = 2
        for name in method.bank.layers
        if name != LAST
    }
    assert len(general) == 2
    together = logits_by_row(method, backbone, batch)
    weights = expected_weights(method, backbone, batch)
    for single, row, found in zip(singles(backbone, batch), weights, together, strict=True):
        parts = (branch[LAST] for branch in branches)
        last = sum((w * (up @ down) for w, (up, down) in zip(row, parts, strict=True)), torch.zeros(()))
        with torch.no_grad():
            expected = hand_merged({**general, LAST: 2.0 * last})(single).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits_by_row(method, backbone, single)[0], found, rtol=1e-5, atol=1e-5)


def test_the_three_fusions_differ_after_two_tasks_and_agree_after_one() -> None:
    batch, found = mixed_batch(), {}
    for fusion in ("factors", "sum", "mean"):
        method, backbone = learned(replace(TINY, fusion=fusion), num_tasks=1)
        first = torch.cat(logits_by_row(method, backbone, batch))
        learn(method, backbone, "others")
        found[fusion] = (first, torch.cat(logits_by_row(method, backbone, batch)))
    for one, other in (("factors", "sum"), ("sum", "mean"), ("mean", "factors")):
        torch.testing.assert_close(found[one][0], found[other][0], rtol=1e-5, atol=1e-5)
        assert (found[one][1] - found[other][1]).abs().max() > 1e-2


def test_while_a_task_trains_its_branch_alone_serves_in_every_layer() -> None:
    method, backbone = learned(TINY, num_tasks=1)
    method.begin_task(backbone, task_info("others"))
    assert set(trainable_parameters(backbone)) == {
        f"{n}.groups.1.{f}" for n in method.bank.layers for f in ("up", "down")
    }
    with torch.no_grad():
        for name, parameter in trainable_parameters(backbone).items():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    batch = mixed_batch()
    merged = hand_merged({name: 2.0 * up @ down for name, (up, down) in in_each_layer(method, 1).items()})
    with torch.no_grad():
        expected = merged(batch).logits
    torch.testing.assert_close(torch.cat(logits_by_row(method, backbone, batch)), expected, rtol=1e-4, atol=1e-4)


def test_the_oracle_chooses_in_the_last_layer_only() -> None:
    method, backbone = learned(TINY)
    batch = mixed_batch()
    branches = [in_each_layer(method, index) for index in range(3)]
    increments = {
        name: 2.0 * general_increment([branch[name] for branch in branches], "factors") for name in method.bank.layers
    }
    up, down = branches[1][LAST]
    with torch.no_grad():
        expected = hand_merged({**increments, LAST: 2.0 * up @ down})(batch).logits
    found = logits_by_row(method, backbone, replace(batch, oracle_task="others"))
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-4)


def test_earlier_branches_and_prototypes_stay_bit_identical() -> None:
    method, backbone = learned(TINY, num_tasks=2)
    branches, memory = copy_tensors(method.parameters()), copy_tensors(method.memory)
    learn(method, backbone, "words")
    after = method.parameters()
    assert branches
    assert all(torch.equal(after[name], value) for name, value in branches.items())
    assert all(torch.equal(method.memory[kind][:2], value) for kind, value in memory.items())


def test_a_state_without_its_prototypes_is_refused() -> None:
    method, backbone = learned(TINY, num_tasks=2)
    state = method.state_dict(backbone)
    without = {name: value for name, value in state.tensors.items() if name != "memory.image"}
    with pytest.raises(CheckpointError, match="prototypes"):
        attached(TINY, pocket(), MethodState(tensors=without, structure=state.structure))
    shorter = {**state.tensors, "memory.text": state.tensors["memory.text"][:1].clone()}
    with pytest.raises(CheckpointError, match=r"'text': \(1, 256\)"):
        attached(TINY, pocket(), MethodState(tensors=shorter, structure=state.structure))


def test_a_task_without_batches_is_an_error() -> None:
    backbone = pocket()
    method = attached(TINY, backbone)
    assert isinstance(method, Hide)
    method.begin_task(backbone, task_info("names"))
    with pytest.raises(ConfigError, match="no training batch of task 'names'"):
        method.end_task(TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2)), task_info("names"), iter(()))


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hide.temperature is 0.0; it should be greater than 0"):
        HideConfig(temperature=0.0)
