"""Frozen groups in one pair or folded into the weight add what they add one by one, with the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from components.adapters.inject import inject_bank
from components.adapters.joined import Constant
from components.adapters.low_rank import Bank, BankedLinear
from components.adapters.mixing import scales_from_weights

GROUPS, PAIRS, RANK, IN, OUT = ("0", "1", "2"), 4, 2, 12, 10


def bank_of(*, dtype: torch.dtype = torch.float32, trained: str | None = None, dropout: float = 0.0) -> Bank:
    """One layer with three groups whose increments are not zero; all are frozen but one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(IN, OUT)).to(dtype)
    bank = inject_bank(net, {"0": net[0]})  # type: ignore[dict-item]
    for group in GROUPS:
        bank.add_group(group, num_pairs=PAIRS, rank=RANK, init="kaiming", seed=0, dropout=dropout)
        bank.set_trainable(group, group == trained)
    with torch.no_grad():
        for name, parameter in bank.parameters().items():
            if name.endswith("up"):
                parameter.normal_()
    return bank


def layer_of(bank: Bank) -> BankedLinear:
    return bank.layers["0"]


def by_hand(layer: BankedLinear, weights: Tensor, x: Tensor) -> Tensor:
    """Each sample with a dense matrix of its own, in float64; weights [B, K]."""
    found = []
    for row, sample in zip(weights.double(), x.double(), strict=True):
        matrix = layer.weight.double()
        for pair, value in enumerate(row):
            group, place = layer.groups[GROUPS[pair // PAIRS]], slice(RANK * (pair % PAIRS), RANK * (pair % PAIRS + 1))
            down, up = group.get_parameter("down").double(), group.get_parameter("up").double()
            matrix = matrix + value * up[:, place] @ down[place]
        found.append(sample @ matrix.T + layer.bias.double())
    return torch.stack(found)


def sparse_weights() -> Tensor:
    """[B, K]: two groups with pairs left out, and one with all of its pairs."""
    weights = torch.rand(3, len(GROUPS) * PAIRS) + 0.1
    weights[:, [1, 2, 7]] = 0.0
    return weights


@pytest.mark.parametrize("trained", [None, "2", "0"])
def test_groups_beside_each_other_are_dense_matrices_by_sample(trained: str | None) -> None:
    bank = bank_of(trained=trained)
    layer, weights = layer_of(bank), sparse_weights().requires_grad_()
    x = torch.randn(3, 5, IN, requires_grad=True)
    used = weights.detach().any(dim=0)
    with bank.mixing.using(scales_from_weights(weights, GROUPS, rank=RANK, used=used)):
        output = layer(x)
    trains = [parameter for parameter in bank.parameters().values() if parameter.requires_grad]
    found = torch.autograd.grad(output.square().sum(), [x, weights, *trains])
    expected = by_hand(layer, weights, x)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected.square().sum(), [x, weights, *trains])
    for mine, theirs in zip(found, wanted, strict=True):
        unused = mine.shape == weights.shape
        torch.testing.assert_close(mine, theirs * used if unused else theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [None, 1000, 1])  # folded, folded, apart
@pytest.mark.parametrize("trained", [None, "2"])
def test_a_constant_is_a_dense_matrix(tokens: int | None, trained: str | None) -> None:
    bank = bank_of(trained=trained)
    layer, x = layer_of(bank), torch.randn(3, 5, IN, requires_grad=True)
    row = sparse_weights()[0]
    row[2 * PAIRS :] = 0.0 if trained else row[2 * PAIRS :]
    own = scales_from_weights(torch.rand(3, PAIRS), ["2"], rank=RANK)
    with bank.mixing.using(own, Constant.of_row(row, GROUPS, tokens=tokens)):
        output = layer(x)
    weights = row.expand(3, -1).clone()
    scale = own["2"]
    assert isinstance(scale, Tensor)
    weights[:, 2 * PAIRS :] += scale[:, 0, ::RANK]
    expected = by_hand(layer, weights, x)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(output.square().sum(), x)[0]
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), x)[0], rtol=1e-4, atol=1e-4)


def products(bank: Bank, constant: Constant | None) -> int:
    """Matrix products in one pass over the layer."""
    layer = layer_of(bank)
    x = torch.randn(3, 5, IN, dtype=layer.weight.dtype)
    with torch.no_grad(), bank.mixing.using({}, constant):
        layer(x)  # makes the copies
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
            layer(x)
    return sum(event.name in ("aten::mm", "aten::addmm") for event in watched.events() or [])


def test_a_folded_constant_costs_no_product_and_others_two() -> None:
    row = torch.full((len(GROUPS) * PAIRS,), 0.5)
    assert products(bank_of(), None) == 1
    assert products(bank_of(), Constant.of_row(row, GROUPS, tokens=None)) == 1
    assert products(bank_of(), Constant.of_row(row, GROUPS, tokens=1)) == 3
    few = torch.zeros_like(row)
    few[0] = 0.5  # thin factors: a dense copy would take more memory
    assert products(bank_of(), Constant.of_row(few, GROUPS, tokens=None)) == 3
    assert products(bank_of(dtype=torch.bfloat16), Constant.of_row(row, GROUPS, tokens=None)) == 3


@pytest.mark.parametrize("tokens", [None, 1])
def test_copies_follow_the_parameters(tokens: int | None) -> None:
    bank = bank_of()
    layer, x = layer_of(bank), torch.randn(3, 5, IN)
    row = torch.full((len(GROUPS) * PAIRS,), 0.5)
    weights = row.expand(3, -1)

    def check() -> None:
        with bank.mixing.using({}, Constant.of_row(row, GROUPS, tokens=tokens)):
            torch.testing.assert_close(layer(x).double(), by_hand(layer, weights, x), rtol=1e-5, atol=1e-5)
        with bank.mixing.using(scales_from_weights(weights, GROUPS, rank=RANK)):
            torch.testing.assert_close(layer(x).double(), by_hand(layer, weights, x), rtol=1e-5, atol=1e-5)

    with torch.inference_mode():
        check()
    check()  # the copies that were made in inference mode serve a pass with gradients
    with torch.no_grad():
        layer.groups["1"].get_parameter("up").copy_(torch.randn(OUT, PAIRS * RANK))
    check()
    bank.remove_group("1")
    bank.add_group("1", num_pairs=PAIRS, rank=RANK, init="gaussian", seed=1)
    bank.set_trainable("1", False)
    check()


def test_frozen_branches_keep_their_dropout_in_training() -> None:
    bank = bank_of(dropout=0.5)
    layer, x = layer_of(bank), torch.randn(3, 5, IN)
    constant = Constant.of_row(torch.full((len(GROUPS) * PAIRS,), 0.5), GROUPS, tokens=None)
    with bank.mixing.using({}, constant):
        layer.train()
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))
