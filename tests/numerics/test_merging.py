"""Merging rules worked by hand, merges against written-out formulas, and what a merge must leave alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_stream import attached, batch_of, info, learn, pocket, train

from components.adapters.dense_increment import (
    DenseIncrement,
    drop_and_rescale,
    elect_and_average,
    kth_magnitude,
    trim,
)
from components.adapters.low_rank import seeded_generator
from components.core.errors import ConfigError
from components.data.batch import Batch
from components.methods.base import MethodState, copy_tensors
from components.methods.merging import MERGED, Merging, MergingConfig
from components.models.backbone import Backbone
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig

TINY = MergingConfig(rank=4, alpha=8.0)  # scale 2
RULES = ("average", "task_arithmetic", "ties", "dare")
Increments = dict[str, np.ndarray]  # by layer, float64


def merging(config: MergingConfig = TINY, names: tuple[str, ...] = ("names", "others")) -> tuple[Merging, Backbone]:
    """A method that has learned the tasks."""
    backbone = pocket()
    method = attached(config, backbone)
    assert isinstance(method, Merging)
    for name in names:
        learn(method, backbone, name)
    return method, backbone


def increments(method: Merging, task: int) -> Increments:
    """2 up down of a task's branch, from the stored factors."""
    parameters = {name: value.detach().double().numpy() for name, value in method.parameters().items()}
    return {
        layer: 2.0 * parameters[f"{layer}.groups.{task}.up"] @ parameters[f"{layer}.groups.{task}.down"]
        for layer in method.bank.layers
    }


def dense(method: Merging) -> Increments:
    """The matrices that serve."""
    found = {}
    for name, layer in method.bank.layers.items():
        merged = layer.groups[MERGED]
        assert isinstance(merged, DenseIncrement)
        found[name] = merged.weight.double().numpy()
    return found


def ties_by_loops(tasks: list[Increments], keep: float, coefficient: float) -> Increments:
    """Written out over one flat vector per task."""
    vectors = [np.concatenate([part.ravel() for part in task.values()]) for task in tasks]
    for vector in vectors:
        vector[np.argsort(-np.abs(vector), kind="stable")[round(keep * len(vector)) :]] = 0.0
    merged = np.zeros(len(vectors[0]))
    for place in range(len(merged)):
        entries = [vector[place] for vector in vectors]
        sign = np.sign(sum(entries))
        agreeing = [entry for entry in entries if entry and np.sign(entry) == sign]
        merged[place] = coefficient * sum(agreeing) / len(agreeing) if agreeing else 0.0
    result, start = {}, 0
    for name, part in tasks[0].items():
        result[name] = merged[start : start + part.size].reshape(part.shape)
        start += part.size
    return result


def logits(method: Merging, backbone: Backbone, batch: Batch) -> torch.Tensor:
    backbone.eval()
    with torch.no_grad(), method.select(backbone, batch) as selection:
        assert selection.routed_to is None
        return backbone(batch).logits


def test_ties_of_three_two_by_two_increments_by_hand() -> None:
    """Half of the entries stay: 4 and 2; -3 and -2; 2 and -5. The masses are then 4 - 3 + 2 = 3, -2 - 5 = -7, 2 and 0,
    so the means of those that agree are (4 + 2) / 2 = 3, -3.5, 2 and 0.
    """
    tasks = [
        torch.tensor([[4.0, -1.0], [2.0, 0.5]]),
        torch.tensor([[-3.0, -2.0], [1.0, -0.1]]),
        torch.tensor([[2.0, -5.0], [0.1, 0.2]]),
    ]
    trimmed = [trim(task, kth_magnitude(lambda task=task: [task], 2)) for task in tasks]
    assert trimmed[1].tolist() == [[-3.0, -2.0], [0.0, 0.0]]
    assert elect_and_average(trimmed).tolist() == [[3.0, -3.5], [2.0, 0.0]]


def test_electing_signs_by_hand_when_masses_differ_from_counts() -> None:
    """Two small positives lose to one large negative; 1 and -1 have the same mass; zeros are not averaged in."""
    tasks = [torch.tensor([[1.0, 1.0], [0.0, 6.0]]), torch.tensor([[2.0, -1.0], [0.0, 0.0]]), torch.zeros(2, 2)]
    tasks[2][0, 0] = -4.0
    assert elect_and_average(tasks).tolist() == [[-4.0, 0.0], [0.0, 6.0]]


def test_dare_of_a_two_by_two_increment_by_hand() -> None:
    """p = 0.75 multiplies by 4 what stays: entries whose uniform draw is at least 0.75."""
    increment = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    draws = torch.rand(2, 2, generator=seeded_generator(5, "draw"))
    found = drop_and_rescale(increment, 0.75, seeded_generator(5, "draw"))
    assert found.tolist() == [
        [4.0 * float(increment[i, j]) if float(draws[i, j]) >= 0.75 else 0.0 for j in (0, 1)] for i in (0, 1)
    ]
    seen = torch.stack([drop_and_rescale(increment, 0.75, seeded_generator(seed, "draw")) for seed in range(4000)])
    # the mean's standard deviation is |entry| sqrt(3 / 4000) = 0.027 |entry|; four of them
    assert bool(((seen.mean(dim=0) - increment).abs() < 0.11 * increment.abs()).all())
    assert float((seen == 0).float().mean()) == pytest.approx(0.75, abs=0.014)  # 16,000 draws, four deviations


@pytest.mark.parametrize("k", [1, 2, 7, 500, 999, 1000])
def test_the_kth_magnitude_is_that_of_the_sorted_vector(k: int) -> None:
    generator = seeded_generator(0, "magnitudes")
    vector = torch.randn(1000, generator=generator) * 10.0 ** torch.randint(-42, 30, (1000,), generator=generator)
    vector[::5] = 0.25  # many equal entries, and zeros
    vector[1::9] = 0.0
    parts = [vector[:300].view(30, 10), vector[300:301], vector[301:]]
    assert kth_magnitude(lambda: iter(parts), k) == float(vector.abs().sort(descending=True).values[k - 1])


@pytest.mark.parametrize("keep", [0.2, 0.75, 1.0])
def test_ties_equals_the_written_out_formula(keep: float) -> None:
    method, _ = merging(replace(TINY, rule="ties", keep=keep, coefficient=0.7))
    expected = ties_by_loops([increments(method, 0), increments(method, 1)], keep, 0.7)
    for name, found in dense(method).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-8)
    zeros = np.mean(np.concatenate([found.ravel() for found in dense(method).values()]) == 0)
    assert zeros < 0.01 if keep == 1.0 else zeros > (1 - 2 * keep)


def test_dare_drops_each_tasks_entries_on_their_own_and_keeps_a_tasks_mask() -> None:
    method, backbone = merging(replace(TINY, rule="dare", drop_rate=0.9, coefficient=0.5), ("names",))
    first = dense(method)
    learn(method, backbone, "others")
    dropped = []
    for name, found in dense(method).items():
        for merged, task in ((first[name], 0), (found - first[name], 1)):
            full = 0.5 * increments(method, task)[name] / 0.1
            gone = np.abs(merged) < 1e-3 * np.abs(full)
            np.testing.assert_allclose(merged[~gone], full[~gone], rtol=1e-3, atol=1e-6)
            dropped.append(gone)
    assert np.mean([gone.mean() for gone in dropped]) == pytest.approx(0.9, abs=0.02)
    assert not any(np.array_equal(one, other) for one in dropped for other in dropped if one is not other)


@pytest.mark.parametrize("rule", RULES)
def test_answers_are_those_of_one_dense_merged_model(rule: str) -> None:
    """W0 + M as plain weights; what the branches or the dense group serve must be the same model."""
    method, backbone = merging(replace(TINY, rule=rule))
    if rule in ("ties", "dare"):
        merged = dense(method)
    else:  # 0.5 = 1 / 2 tasks; 0.4 is the default
        factor = {"average": 0.5, "task_arithmetic": 0.4}[rule]
        merged = {name: factor * (part + increments(method, 1)[name]) for name, part in increments(method, 0).items()}
    weights = {
        f"{name}.weight": layer.weight.detach() + torch.from_numpy(merged[name]).float()
        for name, layer in method.bank.layers.items()
    }
    plain, batch = pocket(), batch_of("others")
    with torch.no_grad():
        expected = torch.func.functional_call(plain, weights, (batch,)).logits
        assert not torch.allclose(expected, plain(batch).logits, atol=1e-2)
    torch.testing.assert_close(logits(method, backbone, batch), expected, rtol=1e-3, atol=1e-3)


def test_one_task_with_coefficient_one_is_the_branch_alone() -> None:
    for rule in ("average", "task_arithmetic"):
        method, backbone = merging(replace(TINY, rule=rule, coefficient=None if rule == "average" else 1.0), ("names",))
        batch = batch_of("names")
        with torch.no_grad(), method.bank.mixing.using({"0": 2.0}):
            alone = backbone(batch).logits
        assert torch.equal(logits(method, backbone, batch), alone)
        assert not torch.equal(alone, pocket()(batch).logits)


@pytest.mark.parametrize("change", [{"rule": "ties", "keep": 1.0}, {"rule": "dare", "drop_rate": 0.0}])
def test_one_task_untouched_by_a_dense_rule_is_the_branch_alone(change: dict[str, object]) -> None:
    method, _ = merging(replace(TINY, coefficient=1.0, **change), ("names",))
    for name, found in dense(method).items():
        branch = increments(method, 0)[name]  # float32, entries up to 4e-2
        np.testing.assert_allclose(found, branch, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rule", RULES)
def test_a_task_trains_its_branch_alone_and_leaves_the_others_bits(rule: str) -> None:
    method, backbone = merging(replace(TINY, rule=rule), ("names",))
    kept = copy_tensors(method.parameters())
    batch = batch_of("others")
    method.begin_task(backbone, info("others"))
    assert torch.equal(logits(method, backbone, batch), pocket().eval()(batch).logits)  # a fresh start from W0
    assert set(trainable_parameters(backbone)) == method.parameters().keys() - kept.keys()
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    losses = train(method, engine, "others", updates=6)
    method.end_task(engine, info("others"), iter(()))
    engine.close()
    assert losses[-1] < losses[0]
    assert all(torch.equal(method.parameters()[name], value) for name, value in kept.items())


@pytest.mark.parametrize("rule", RULES)
def test_a_state_holds_branches_only_and_gives_the_same_bits(rule: str, tmp_path: Path) -> None:
    config = replace(TINY, rule=rule)
    method, backbone = merging(config)
    state = method.state_dict(backbone)
    assert all(name.endswith((".down", ".up")) for name in state.tensors)
    save_file(state.tensors, tmp_path / "state.safetensors")
    restored = MethodState(tensors=load_file(tmp_path / "state.safetensors"), structure=state.structure)
    other = attached(config, backbone_again := pocket(), restored)
    assert isinstance(other, Merging)
    assert set(backbone_again.state_dict()) == set(pocket().state_dict()) | set(state.tensors)
    for name in ("names", "others"):
        expected = logits(method, backbone, batch_of(name))
        assert torch.equal(logits(other, backbone_again, batch_of(name)), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "average", "coefficient": 0.5}, "leave the coefficient out"),
        ({"coefficient": 0.0}, r"merging\.coefficient is 0\.0"),
        ({"keep": 0.0}, r"merging\.keep is 0\.0"),
        ({"keep": 20.0}, r"merging\.keep is 20\.0"),
        ({"drop_rate": 1.0}, r"merging\.drop_rate is 1\.0"),
        ({"rank": 0}, r"merging\.rank is 0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)
