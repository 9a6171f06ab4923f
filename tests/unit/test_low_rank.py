"""The bank: names, scopes, skipping, per-sample weights, dtypes, seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.adapters.inject import inject_bank
from components.adapters.low_rank import Bank
from components.adapters.mixing import Chosen, scales_from_weights


class Net(nn.Module):
    """Two linear layers, one with a bias."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"first": nn.Linear(12, 10), "second": nn.Linear(10, 6, bias=False)})
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block["second"](torch.tanh(self.block["first"](x)))


def banked(net: Net) -> Bank:
    targets = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    return inject_bank(net, targets)


def filled(net: Net, *, groups: int = 2, num_pairs: int = 3, rank: int = 2) -> Bank:
    """A bank whose increments are not zero."""
    bank = banked(net)
    for group in range(groups):
        bank.add_group(str(group), num_pairs=num_pairs, rank=rank, init="kaiming", seed=0)
    with torch.no_grad():
        for name, parameter in bank.parameters().items():
            if name.endswith("up"):
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return bank


def test_state_dict_names_of_the_base_stay() -> None:
    net = Net()
    names = set(net.state_dict())
    weight = net.block["first"].weight
    bank = banked(net)
    assert set(net.state_dict()) == names
    assert net.block["first"].weight is weight
    bank.add_group("0", num_pairs=3, rank=2, init="kaiming", seed=0)
    assert set(net.state_dict()) == names | set(bank.parameters())
    assert [name for name, parameter in net.named_parameters() if parameter.requires_grad] == list(bank.parameters())


def test_a_layer_is_adapted_once() -> None:
    net = Net()
    banked(net)
    with pytest.raises(AssertionError, match="is adapted already"):
        banked(net)


def test_an_empty_bank_and_an_unnamed_group_change_nothing() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 5, 12)
    expected = net(x)
    bank = filled(net)
    assert torch.equal(net(x), expected)
    with bank.mixing.using({"1": 1.0}):
        assert not torch.equal(net(x), expected)
    assert torch.equal(net(x), expected)


def test_per_sample_weights_equal_one_dense_matrix_per_sample() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 5, 12)
    bank = filled(net)
    weights = torch.rand(4, 6)
    with bank.mixing.using(scales_from_weights(weights, ["0", "1"], rank=2)):
        mixed = net(x)
    for sample in range(4):
        dense = {}
        for name, layer in bank.layers.items():
            matrix = layer.weight.detach().clone()
            for pair in range(6):
                group, rows = layer.groups[str(pair // 3)], slice(2 * (pair % 3), 2 * (pair % 3) + 2)
                matrix += weights[sample, pair] * group.up.detach()[:, rows] @ group.down.detach()[rows]
            dense[f"{name}.weight"] = matrix
        alone = torch.func.functional_call(net, dense, (x[sample : sample + 1],))
        torch.testing.assert_close(mixed[sample : sample + 1], alone, rtol=1e-5, atol=1e-6)


def test_groups_and_pairs_without_weight_in_the_batch_are_skipped() -> None:
    weights = torch.zeros(3, 6)
    weights[1, 4] = 0.5
    scales = scales_from_weights(weights, ["0", "1"], rank=2)
    assert list(scales) == ["1"]
    scale = scales["1"]
    assert isinstance(scale, Chosen)
    assert (scale.pairs, scale.rows.tolist()) == ((1,), [2, 3])
    assert scale.scale.tolist() == [[[0.0, 0.0]], [[0.5, 0.5]], [[0.0, 0.0]]]
    weights[:, 3:] = 0.25
    scale = scales_from_weights(weights, ["0", "1"], rank=2)["1"]
    assert isinstance(scale, torch.Tensor)
    assert torch.equal(scale, torch.full((3, 1, 6), 0.25))


def test_weights_receive_gradients_and_unchosen_pairs_receive_none() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 5, 12)
    bank = filled(net, groups=1)
    weights = torch.tensor([[0.3, 0.7, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    with bank.mixing.using(scales_from_weights(weights, ["0"], rank=2)):
        net(x).square().sum().backward()
    assert weights.grad is not None
    assert bool((weights.grad[0] != 0).all())
    for name, parameter in bank.parameters().items():
        assert parameter.grad is not None, name
        unchosen = parameter.grad[4:] if name.endswith("down") else parameter.grad[:, 4:]
        assert bool((unchosen == 0).all()), name


def test_adapters_stay_float32_on_a_bfloat16_base() -> None:
    torch.manual_seed(0)
    net = Net(torch.bfloat16)
    bank = filled(net, groups=1)
    assert all(parameter.dtype == torch.float32 for parameter in bank.parameters().values())
    x = torch.randn(2, 5, 12, dtype=torch.bfloat16)
    with bank.mixing.using({"0": 2.0}):
        output = net(x)
    assert output.dtype == torch.bfloat16
    layer = bank.layers["block.first"]
    with bank.mixing.using({"0": 2.0}):
        exact = layer.groups["0"](x.float(), 2.0) + torch.nn.functional.linear(x, layer.weight, layer.bias)
        assert torch.equal(layer(x), exact.bfloat16())


def test_draws_depend_on_the_seed_the_group_and_the_layer_only() -> None:
    def downs(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(torch.seed())
        bank = banked(Net())
        bank.add_group("a", num_pairs=3, rank=2, init="paper", seed=seed)
        bank.add_group("b", num_pairs=3, rank=2, init="paper", seed=seed)
        return {name: value for name, value in bank.parameters().items() if name.endswith("down")}

    first, again, other = downs(1), downs(1), downs(2)
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert not any(torch.equal(other[name], value) for name, value in first.items())
    assert not torch.equal(first["block.first.groups.a.down"], first["block.first.groups.b.down"])


def test_a_copied_group_is_frozen_and_independent() -> None:
    bank = filled(Net(), groups=1)
    bank.copy_group("0", "copy")
    copies = bank.group_parameters("copy")
    originals = bank.group_parameters("0")
    with torch.no_grad():
        for original, copy in zip(originals.values(), copies.values(), strict=True):
            assert torch.equal(original, copy)
            assert not copy.requires_grad
            original.add_(1.0)
            assert not torch.equal(original, copy)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 5, 12)
    bank = banked(net)
    bank.add_group("0", num_pairs=1, rank=4, init="kaiming", seed=0, dropout=0.5)
    layer = bank.layers["block.first"]
    with torch.no_grad():
        layer.groups["0"].up.fill_(1.0)
    with bank.mixing.using({"0": 1.0}):
        assert not torch.equal(net.train()(x), net(x))
        assert torch.equal(net.eval()(x), net(x))
