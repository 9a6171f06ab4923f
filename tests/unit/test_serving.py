"""What a bank adds is told apart: whatever changes the bits of a layer's output changes the digest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from components.adapters.fused import FusedPairs
from components.adapters.inject import inject_bank
from components.adapters.joined import Constant
from components.adapters.low_rank import Bank, LowRankPairs
from components.adapters.mixing import Mixing, Scale, Scales, scales_from_weights
from components.adapters.projectors import ProjectorBank, Serving, inject_projectors
from components.adapters.serving import Digests, served_by_bank, served_by_projectors, served_by_tensors

GROUPS, PAIRS, RANK, WIDTH, ROWS = ("0", "1", "2"), 4, 3, 24, 5


def bank_of(*, trained: tuple[str, ...] = (), zero: tuple[str, ...] = ()) -> Bank:
    """Two layers with three groups: those in `trained` are not frozen, those in `zero` add nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    bank = inject_bank(net, {"0": net[0], "1": net[1]})  # type: ignore[dict-item]
    for group in GROUPS:
        bank.add_group(group, num_pairs=PAIRS, rank=RANK, init="kaiming", seed=0)
        bank.set_trainable(group, group in trained)
    with torch.no_grad():
        for name, parameter in bank.parameters().items():
            if name.endswith("up"):
                parameter.normal_()
            if any(f".groups.{group}." in name for group in zero) and name.endswith("up"):
                parameter.zero_()
    return bank


def weights(*zero_pairs: int) -> Tensor:
    """[B, K]; the columns `zero_pairs` are left out."""
    found = torch.rand(ROWS, len(GROUPS) * PAIRS, generator=torch.Generator().manual_seed(1)) + 0.1
    found[:, list(zero_pairs)] = 0.0
    return found


def evenly(*zero_pairs: int) -> Tensor:
    """The same weight for every pair of the first group that is not left out."""
    found = torch.zeros(ROWS, len(GROUPS) * PAIRS)
    found[:, :PAIRS] = 0.5
    found[:, list(zero_pairs)] = 0.0
    return found


def changed(values: Tensor) -> Tensor:
    """One weight of one row is a bit larger."""
    found = values.clone()
    found[2, 0] *= 1.01
    return found


def of_row(values: Tensor, tokens: int | None = None) -> Constant | None:
    return Constant.of_row(values[0], GROUPS, tokens=tokens)


def scales(values: Tensor) -> Scales:
    return scales_from_weights(values, GROUPS, rank=RANK)


WAYS: dict[str, tuple[Scales, Constant | None]] = {
    "one": ({"0": 0.5}, None),
    "one, otherwise": ({"0": 0.6}, None),
    "another": ({"1": 0.5}, None),
    "two": ({"0": 0.5, "1": 0.5}, None),
    "two, turned round": ({"1": 0.5, "0": 0.5}, None),
    "by row": (scales(weights()), None),
    "by row, one weight changed": (scales(changed(weights())), None),
    "chosen": (scales(weights(1, 2)), None),
    "other ones chosen": (scales(weights(1, 3)), None),
    "chosen alike": (scales(evenly(1, 2)), None),
    "others chosen alike": (scales(evenly(0, 3)), None),
    "a whole group left out": (scales(weights(4, 5, 6, 7)), None),
    "constant": ({}, of_row(weights())),
    "constant, changed": ({}, of_row(changed(weights()) * 1.01)),
    "constant, chosen": ({}, of_row(weights(1, 2))),
    "constant, few tokens": ({}, of_row(weights(), tokens=1)),
    "constant beside scales": ({"2": 0.5}, Constant.even(["0", "1"], 0.5)),
    "the same as scales": ({"0": 0.5, "1": 0.5, "2": 0.5}, None),
}
BANKS: dict[str, Callable[[], Bank]] = {
    "frozen": bank_of,
    "last one trains": lambda: bank_of(trained=("2",)),
    "first one is zero": lambda: bank_of(zero=("0",)),
}


def digest(bank: Bank, scales: Scales, constant: Constant | None = None) -> str | None:
    with torch.inference_mode(), bank.mixing.using(scales, constant):
        return served_by_bank(bank, Digests())


def test_whatever_changes_the_bits_changes_the_digest() -> None:
    x = torch.randn(ROWS, 7, WIDTH, generator=torch.Generator().manual_seed(2))
    found: dict[str, tuple[Tensor, str | None]] = {}
    for kind, make in BANKS.items():
        for way, (in_force, constant) in WAYS.items():
            bank = make()
            with torch.inference_mode(), bank.mixing.using(in_force, constant):
                outputs = torch.stack([layer(x) for layer in bank.layers.values()])
            found[f"{kind}, {way}"] = outputs, digest(bank, in_force, constant)
            assert digest(make(), in_force, constant) == found[f"{kind}, {way}"][1]
    moved = 0
    for (one, (outputs, name)), (other, (others, its)) in combinations(found.items(), 2):
        if not torch.equal(outputs, others):
            moved += 1
            assert name != its, f"{one} and {other} have other bits and one digest"
    assert moved > len(found)


def test_groups_that_are_computed_together_are_told_from_those_that_are_not() -> None:
    both: Mapping[str, Scale] = {"0": 0.5, "2": 0.5}
    assert digest(bank_of(), both) != digest(bank_of(trained=("2",)), both)
    assert digest(bank_of(), {"2": 0.5}) == digest(bank_of(trained=("2",)), {"2": 0.5})
    even = Constant.even(["0", "2"], 0.5)
    assert digest(bank_of(), {}, even) != digest(bank_of(trained=("2",)), {}, even)


def test_the_tokens_that_decide_on_folding_are_told_apart() -> None:
    values = weights()
    assert len({digest(bank_of(), {}, of_row(values, tokens)) for tokens in (None, 1, 1000)}) == 3


def test_groups_that_add_zeros_are_nothing_alone_and_something_beside_others() -> None:
    bank, by_row = bank_of(zero=("0", "1")), scales(weights())
    assert digest(bank, {}) == digest(bank, {"0": 0.5}) == digest(bank, {}, Constant.even(["0", "1"], 0.5)) == ""
    assert digest(bank, by_row) not in ("", digest(bank, {"2": by_row["2"]}))


def test_names_of_groups_do_not_count() -> None:
    bank, other = bank_of(), bank_of()
    for layer in other.layers.values():
        layer.groups["renamed"] = layer.groups["1"]
    assert digest(bank, {"1": 0.5}) == digest(other, {"renamed": 0.5})


@pytest.mark.parametrize("kind", ["scale", "group", "mixing", "empty"])
def test_of_what_is_not_known_nothing_is_said(kind: str) -> None:
    bank, in_force = bank_of(), dict[str, Scale]({"0": 0.5})
    layer = bank.layers["1"]
    if kind == "scale":
        in_force["0"] = 1  # neither a float nor a tensor
    elif kind == "group":
        pair = layer.groups["0"]
        assert isinstance(pair, LowRankPairs)
        layer.groups["0"] = FusedPairs([pair])
    elif kind == "mixing":
        layer.mixing = Mixing()
    else:
        layer.groups["0"].up = nn.Parameter(torch.empty(0))
    assert digest(bank, in_force) is None


class Projector(nn.Module):
    """Two layers, as LLaVA-1.5 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_1, self.act, self.linear_2 = nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)


def projectors() -> ProjectorBank:
    """Copies "a" and "b" with other numbers than the frozen projector's, and "c" with those of "a"."""
    torch.manual_seed(0)
    net = nn.Sequential(Projector())
    bank = inject_projectors(net, "0")
    for name in ("a", "b", "c"):
        bank.add_copy(name, unit=0.5 if name == "b" else 1.0)
    with torch.no_grad():
        for name, parameter in bank.copies.named_parameters():
            parameter.mul_(2.0 if name.startswith("b") else 3.0)
    return bank


def test_whatever_projects_pictures_is_told_apart() -> None:
    features = torch.randn(4, 7, WIDTH, generator=torch.Generator().manual_seed(2))
    ways: list[Serving] = [
        None,
        "a",
        "b",
        "c",
        *(list(way) for way in ("aaaa", "aabb", "abab", "bbaa", "aabc", "bcaa")),
    ]
    ways += [[None, None, None, None], [None, "a", "a", None], ["a", None, None, "a"]]
    found = list[tuple[Serving, Tensor, str]]()
    for way in ways:
        bank = projectors()
        with torch.inference_mode(), bank.using(way):
            found.append((way, bank(features), served_by_projectors(bank, Digests())))
    moved = 0
    for (one, outputs, digest_of_one), (other, others, its) in combinations(found, 2):
        if not torch.equal(outputs, others):
            moved += 1
            assert digest_of_one != its, f"{one} and {other} project otherwise and have one digest"
    assert moved > len(found)
    digests = {str(way): made for way, _, made in found}
    assert digests["None"] == digests[str([None] * 4)] == ""
    assert digests["a"] == digests["c"] == digests[str(["a"] * 4)]


def test_units_of_a_projector_count() -> None:
    bank, other = projectors(), projectors()
    copy = other.copies["a"].get_submodule("linear_1")
    copy.unit = 2.0  # type: ignore[assignment]
    with bank.using("a"), other.using("a"):
        assert served_by_projectors(bank, Digests()) != served_by_projectors(other, Digests())


def test_without_tensors_nothing_serves() -> None:
    assert served_by_tensors({}) == ""
    assert served_by_tensors({"prefix": torch.zeros(1)}) != served_by_tensors({"prefix": torch.ones(1)})
