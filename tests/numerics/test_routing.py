"""Keys against instruction embeddings: similarity, choice, weights, alignment, shares."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from components.methods.common.key_selection import (
    COSINE_FLOOR,
    choose,
    evenly_spaced,
    normalize_groups,
    orthogonal_keys,
)
from components.methods.common.slot_pool import SlotPool, distinct
from components.methods.continual_llava import ContinualLlavaConfig


def clusters(num_clusters: int, per_cluster: int, *, seed: int, dim: int = 384) -> torch.Tensor:
    """Queries [n, D] around a few well separated directions."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_clusters, dim, generator=generator)
    noise = 0.2 * torch.randn(num_clusters, per_cluster, dim, generator=generator)
    return (centres[:, None] + noise).flatten(0, 1)


def aligned_pool(config: ContinualLlavaConfig, tasks: list[torch.Tensor]) -> SlotPool:
    pool = SlotPool(config.pool_options)
    for index, queries in enumerate(tasks):
        samples = torch.arange(len(queries))
        pool.align(index, queries, samples, torch.Generator().manual_seed(index))
        pool.record_shares(index, queries, samples)
    return pool


def test_grouped_similarity_is_the_mean_of_the_groups_cosines() -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(5, 12), torch.randn(3, 12)
    similarity = normalize_groups(queries, 4) @ normalize_groups(keys, 4).T
    for b in range(5):
        for n in range(3):
            cosines = [F.cosine_similarity(queries[b, j : j + 3], keys[n, j : j + 3], dim=0) for j in range(0, 12, 3)]
            assert float(similarity[b, n]) == pytest.approx(float(sum(cosines)) / 4, abs=1e-6)


def test_keys_start_orthogonal_in_every_group() -> None:
    keys = orthogonal_keys(8, 96, 4, torch.Generator().manual_seed(0))
    for piece in keys.chunk(4, dim=1):
        torch.testing.assert_close(piece @ piece.T, torch.eye(8), rtol=0, atol=1e-5)


def test_ratio_weights_are_the_cosines_divided_by_their_sum() -> None:
    choice = choose(torch.tensor([[0.1, 0.6, 0.3, 0.2]]), top_m=2, weighting="ratio", temperature=0.1)
    assert choice.slots.tolist() == [[1, 2]]
    torch.testing.assert_close(choice.alpha, torch.tensor([[2 / 3, 1 / 3]]))
    assert choice.num_clamped == 0


def test_negative_cosines_are_raised_and_counted() -> None:
    choice = choose(torch.tensor([[0.5, -0.5, -0.1], [-1.0, -1.0, -1.0]]), top_m=2, weighting="ratio", temperature=0.1)
    assert choice.num_clamped == 3
    torch.testing.assert_close(choice.alpha[0], torch.tensor([0.5, COSINE_FLOOR]) / (0.5 + COSINE_FLOOR))
    torch.testing.assert_close(choice.alpha[1], torch.tensor([0.5, 0.5]))


def test_softmax_weights_use_the_temperature() -> None:
    choice = choose(torch.tensor([[0.3, 0.2, -0.9]]), top_m=2, weighting="softmax", temperature=0.1)
    torch.testing.assert_close(choice.alpha, torch.tensor([[3.0, 2.0]]).softmax(dim=1))


def test_batch_selection_gives_every_sample_the_same_slots() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.5, 0.3]])
    choice = choose(similarity, top_m=2, weighting="ratio", temperature=0.1, rule="batch")
    assert choice.slots.tolist() == [[0, 1], [0, 1]]
    torch.testing.assert_close(choice.alpha[0], torch.tensor([0.5, 0.3]) / 0.8)


@pytest.mark.parametrize("rows", [1, 3, 40, 700])
def test_alignment_pulls_chosen_keys_to_the_instructions_whatever_their_number(rows: int) -> None:
    queries = clusters(1, rows, seed=1)
    pool = aligned_pool(ContinualLlavaConfig(), [queries])
    choice = pool.route(queries, allowed=slice(0, 8))
    similarity = normalize_groups(queries, 4) @ normalize_groups(pool.keys, 4).T
    assert float(similarity.gather(1, choice.slots).mean()) > 0.8


def test_without_the_floor_on_updates_a_small_task_barely_moves_its_keys() -> None:
    """Why `alignment_min_updates` exists: three epochs of one batch are three updates."""
    queries = clusters(1, 40, seed=1)
    pool = aligned_pool(ContinualLlavaConfig(alignment_min_updates=0), [queries])
    similarity = normalize_groups(queries, 4) @ normalize_groups(pool.keys, 4).T
    assert float(similarity.max()) < 0.5


def test_separate_tasks_are_routed_to_their_own_slots() -> None:
    tasks = [clusters(2, 30, seed=seed) for seed in (1, 2, 3)]
    pool = aligned_pool(ContinualLlavaConfig(), tasks)
    for index, queries in enumerate(tasks):
        mass = pool.owner_mass(pool.route(queries, allowed=slice(0, 24)), 3)
        assert bool((mass.argmax(dim=1) == index).all())
        assert float(mass[:, index].mean()) > 0.95


def test_instance_selection_uses_more_slots_than_batch_selection() -> None:
    queries = clusters(8, 40, seed=5)
    used = {}
    for rule in ("instance", "batch"):
        pool = aligned_pool(replace(ContinualLlavaConfig(), selection=rule), [queries])
        used[rule] = int((pool.shares[0] > 0).sum())
    assert used["batch"] == 4
    assert used["instance"] == 8


def test_shares_are_the_mean_weights_over_the_samples() -> None:
    queries = clusters(2, 10, seed=1)
    samples = torch.tensor([0, 0, 0, 15, 7])  # repeated instructions count as often as they occur
    pool = SlotPool(ContinualLlavaConfig().pool_options)
    pool.align(0, queries, samples, torch.Generator().manual_seed(0))
    pool.record_shares(0, queries, samples)
    choice = pool.route(queries[samples], allowed=slice(0, 8))
    torch.testing.assert_close(pool.shares[0], choice.spread(8).mean(dim=0))
    assert float(pool.shares.sum()) == pytest.approx(1.0, abs=1e-6)


def test_alignment_is_deterministic() -> None:
    queries = clusters(3, 20, seed=1)
    first = aligned_pool(ContinualLlavaConfig(), [queries])
    again = aligned_pool(ContinualLlavaConfig(), [queries])
    assert torch.equal(first.keys, again.keys)


def test_distinct_and_evenly_spaced_texts() -> None:
    texts, samples = distinct(["b", "a", "b", "c"])
    assert texts == ["b", "a", "c"]
    assert samples.tolist() == [0, 1, 0, 2]
    assert evenly_spaced([str(n) for n in range(10)], 4) == ["0", "2", "5", "7"]
    assert evenly_spaced(["x"], 4) == ["x"]
