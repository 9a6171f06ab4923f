"""What a bank adds to a batch, as a digest: equal ones add the same bits.

A digest is of contents, never of names, so a group keeps its digest when tasks before it are unlearned. It has all that
`BankedLinear.forward` looks at beside its input and the frozen weight, in the order in which they are added:

- each group's factors, how they are cut into pairs, and the weights that its pairs have for every row;
- which pairs are left out, and which groups are multiplied as one: a product with more columns may round otherwise,
  even where the others add zeros;
- the constant, and the number of tokens by which it is folded into the frozen weight or is not.

Copies of frozen groups (joined.py) follow from these: they are always made of the factors by the same operations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor

from components.adapters.low_rank import Bank, LowRankPairs
from components.adapters.mixing import Chosen
from components.adapters.projectors import ProjectorBank, ProjectorCopy

KnownT = TypeVar("KnownT")


class Digests:
    """What was computed of parameters, by name: good for as long as none of them changes."""

    def __init__(self) -> None:
        self._known: dict[str, object] = {}

    def of(self, name: str, compute: Callable[[], KnownT]) -> KnownT:
        """What is called `name`, computed if it is not known."""
        if name not in self._known:
            self._known[name] = compute()
        return cast(KnownT, self._known[name])


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: their names, types, shapes and bits."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def served_by_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of tensors that are put into the model as they are, such as prompts; "" without any."""
    return tensors_digest(tensors) if tensors else ""


def served_by_projectors(bank: ProjectorBank, digests: Digests) -> str:
    """Of the copies that serve now; "" where the frozen projector does."""
    serving = bank.serving
    named = [serving] if serving is None or isinstance(serving, str) else [*serving]
    names = [*dict.fromkeys(named)]
    if not any(name is not None for name in names):
        return ""
    contents = [None if name is None else _copy(bank, name, digests) for name in names]
    # Pictures of one copy are multiplied together, in the order in which copies are first named.
    places = [] if len(names) == 1 else [names.index(name) for name in named]
    return hashlib.sha256(json.dumps([contents, places]).encode()).hexdigest()


def _copy(bank: ProjectorBank, name: str, digests: Digests) -> str:
    copy = bank.copies[name]
    assert isinstance(copy, ProjectorCopy)
    units, own = [copy.linear_1.unit, copy.linear_2.unit], dict(copy.named_parameters())
    return digests.of(f"projector {name}", lambda: f"{units} {tensors_digest(own)}")


@dataclass(frozen=True)
class _Group:
    """One group of pairs in all layers."""

    digest: str
    is_zero: bool  # it was never trained and adds zeros
    joins: tuple[bool, ...]  # `BankedLinear.joins`, by layer


def served_by_bank(bank: Bank, digests: Digests) -> str | None:
    """Of what is in force now; "" where that is nothing but zeros, and the frozen layers alone answer.

    None: something is of a kind that is not known here, and nothing can be said.
    """
    mixing, constant = bank.mixing, bank.mixing.constant
    if any(layer.mixing is not mixing for layer in bank.layers.values()):
        return None
    weights: list[tuple[str, object]] = [] if constant is None else [*constant.weights]
    num_steady = len(weights)
    weights += [(name, _weights(scale)) for name, scale in mixing.scales.items()]
    groups: list[_Group] = []
    for name, scale in weights:
        group = digests.of(f"group {name}", partial(_group, bank, name))
        if group is None or scale is None:
            return None
        groups.append(group)
    if all(group.is_zero for group in groups):
        return ""
    added = [[group.digest, scale] for group, (_, scale) in zip(groups, weights, strict=True)]
    steady = [] if constant is None else [constant.tokens, [group.joins for group in groups[:num_steady]]]
    joining = [group.joins for group in groups[num_steady:]]
    if sum(map(any, joining)) < 2:  # a group alone is computed in the same way whether it is frozen or not
        joining = []
    return hashlib.sha256(json.dumps([added, steady, joining]).encode()).hexdigest()


def _weights(scale: object) -> object:
    """Of one group, as JSON; None for a kind that is not known."""
    if isinstance(scale, Chosen):
        return [scale.pairs, tensors_digest({"scale": scale.scale, "rows": scale.rows})]
    if isinstance(scale, Tensor):
        return tensors_digest({"scale": scale})
    return scale if isinstance(scale, float) else None


def _group(bank: Bank, name: str) -> _Group | None:
    """None for one that is not whole here, or whose numbers are not all factors of pairs."""
    pairs: dict[str, LowRankPairs] = {}
    for layer_name, layer in bank.layers.items():
        group = layer.groups[name]
        if type(group) is not LowRankPairs or not group.up.numel():  # ZeRO-3 leaves empty parameters
            return None
        pairs[layer_name] = group
    factors = {f"{layer} {part}": value for layer, each in pairs.items() for part, value in each.named_parameters()}
    return _Group(
        digest=f"{[each.rank for each in pairs.values()]} {tensors_digest(factors)}",
        is_zero=not any(bool(each.up.any()) for each in pairs.values()),
        joins=tuple(layer.joins(name) for layer in bank.layers.values()),
    )
