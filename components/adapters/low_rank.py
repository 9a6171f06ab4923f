"""A bank of low-rank pairs on frozen linear layers, mixed by constants or per-sample weights.

One layer computes, for K pairs of rank R (down [K*R, d_in], up [d_out, K*R]) and weights [B, K],

    y = W0 x + up ((down x) * weights repeated R times)

so an increment is never built as a dense d_out x d_in matrix. Pairs come in *groups* (one group per task, say): a group
is one flat pair of parameters, so freezing a group freezes exactly its tensors and the optimizer never sees them.
Which groups serve a batch, and with which weights, is one `Mixing` shared by all layers. Parameters are float32; in
which precision they compute is up to compute.py.

What is frozen is computed as one pair, or as a part of W0 (joined.py), and pairs without weight are not computed.

Shape letters: B batch, T tokens, K pairs, S pairs of one group, R rank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.compute import Compute, compute_dtype, plus, shared, weight
from components.adapters.joined import Constant, Copies, Group, pays_to_fold
from components.adapters.mixing import Chosen, Mixing, Scale, scaled
from components.core.errors import ConfigError

Init = Literal["kaiming", "gaussian", "small", "paper"]  # see `LowRankPairs.init_down`


@dataclass(frozen=True, kw_only=True)
class Factors:
    """An increment scale * up down of a layer's weight."""

    down: Tensor  # [R, d_in] float32
    up: Tensor  # [d_out, R] float32
    scale: float

    def dense(self) -> Tensor:
        """[d_out, d_in] float32."""
        return self.up @ self.down * self.scale


Increment = Factors | Tensor  # a tensor is the increment itself [d_out, d_in] float32


class LowRankPairs(nn.Module):
    """One group of one layer: S pairs of rank R, flat. Always float32. `up` starts at zero: so does the increment."""

    def __init__(self, linear: nn.Linear, *, num_pairs: int, rank: int, dropout: float) -> None:
        super().__init__()
        width = num_pairs * rank
        device = linear.weight.device
        self.rank = rank
        self.dropout = dropout
        self.down = nn.Parameter(torch.empty(width, linear.in_features, device=device, dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(linear.out_features, width, device=device, dtype=torch.float32))

    def init_down(self, init: Init, generator: torch.Generator) -> None:
        """Draw `down` on the CPU, so that every device and every worker gets the same bits.

        kaiming: U(-b, b), b = 1 / sqrt(d_in), as peft; gaussian: N(0, 1 / rank); small: N(0, 0.01); paper: N(0, 1).
        """
        values = torch.empty(self.down.shape)
        if init == "kaiming":  # as peft does: kaiming_uniform with a = sqrt(5)
            bound = 1.0 / math.sqrt(values.shape[1])
            values.uniform_(-bound, bound, generator=generator)
        elif init == "gaussian":
            values.normal_(0.0, 1.0 / self.rank, generator=generator)
        elif init == "small":  # as CoIN's and HiDe's code draw it, whatever the width
            values.normal_(0.0, 0.01, generator=generator)
        else:
            values.normal_(0.0, 1.0, generator=generator)
        with torch.no_grad():
            self.down.copy_(values)

    def forward(self, x: Tensor, scale: Scale | Chosen) -> Tensor:
        """x [B, T, d_in] -> increment [B, T, d_out], computed in x's dtype."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        down, up = weight(self.down, x.dtype), weight(self.up, x.dtype)
        if isinstance(scale, Chosen):
            down, up = down.index_select(0, scale.rows), up.index_select(1, scale.rows)
        return F.linear(scaled(F.linear(x, down), scale), up)

    def increment(self, scale: float) -> Factors:
        """What it adds to the layer's weight."""
        return Factors(down=self.down.detach(), up=self.up.detach(), scale=scale)


class AdaptedLinear(nn.Linear):
    """Base of frozen linear layers that add an increment to the output.

    It takes over the weight and bias of the layer it replaces (the same tensors under the same state-dict names).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.compute: Compute = "float32"
        self.train(linear.training)

    def adapter_input(self, input: Tensor) -> Tensor:
        """`input` in the dtype that the adapter computes in; layers that read one tensor share the cast."""
        return shared(input, compute_dtype(self.compute, self.weight))

    def increments(self) -> list[Increment]:
        """What the layer adds to its frozen weight now, as a sum; for exports of methods that are not soft.

        Raises `ConfigError` where that is not the same for all samples.
        """
        raise ConfigError(f"a {type(self).__name__} adds nothing that could be added to a weight; export a bundle.")


@runtime_checkable
class HasIncrement(Protocol):
    """A group of a `BankedLinear` whose constant part of the layer's weight is known."""

    def increment(self, scale: float) -> Increment: ...


class BankedLinear(AdaptedLinear):
    """A frozen linear layer with groups of low-rank pairs beside it."""

    def __init__(self, linear: nn.Linear, mixing: Mixing) -> None:
        super().__init__(linear)
        self.mixing = mixing
        self.groups = nn.ModuleDict()
        self._copies = Copies()

    def forward(self, input: Tensor) -> Tensor:  # the base class names its argument so
        """input [B, T, d_in] -> [B, T, d_out] in the base layer's dtype."""
        scales, constant, frozen = self.mixing.scales, self.mixing.constant, self.weight
        if constant is not None and self._folds(constant):
            frozen, constant = self._copies.folded(self._plain(constant.groups), constant, frozen), None
        output = F.linear(input, frozen, self.bias)
        if not scales and constant is None:
            return output
        dtype, x = output.dtype, self.adapter_input(input)
        for part in () if constant is None else self._constant(x, constant):
            output = plus(output, part)
        joined = [name for name in scales if self.joins(name)]
        if len(joined) > 1:
            output = plus(output, self._together(x, joined))
        for name, scale in scales.items():
            if len(joined) == 1 or name not in joined:
                output = plus(output, self.groups[name](x, scale))
        return output.to(dtype)

    def joins(self, name: str) -> bool:
        """Whether a group is a plain pair, frozen and whole, so that a copy beside those of others is as good."""
        group = self.groups[name]
        return (
            type(group) is LowRankPairs
            and not (group.down.requires_grad or group.up.requires_grad)
            and not (group.dropout and group.training)
            and not hasattr(group.down, "ds_id")  # ZeRO-3 leaves a part of it on each rank
        )

    def _folds(self, constant: Constant) -> bool:
        rank = cast(LowRankPairs, self.groups[constant.groups[0]]).rank
        return pays_to_fold(constant, rank, self.weight) and all(map(self.joins, constant.groups))

    def _plain(self, names: Sequence[str]) -> dict[str, Group]:
        return {name: cast(Group, self.groups[name]) for name in names}

    def _constant(self, x: Tensor, constant: Constant) -> Iterator[Tensor]:
        """What `constant` adds [B, T, d_out], in one part or several."""
        groups = self._plain(constant.groups)
        if all(map(self.joins, groups)):
            down, up = self._copies.constant(groups, constant, x.dtype)
            yield F.linear(F.linear(x, down), up)
        else:
            rank = groups[constant.groups[0]].rank
            for name, scale in constant.scales(rank, x.device).items():
                yield self.groups[name](x, scale)

    def _together(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """What several frozen groups add [B, T, d_out]."""
        groups, scales = self._plain(names), self.mixing.scales
        pairs = {name: scale.pairs if isinstance(scale := scales[name], Chosen) else None for name in names}
        down, up = self._copies.pair(groups, pairs, x.dtype)
        widths = {name: len(groups[name].down) for name in names}
        return F.linear(scaled(F.linear(x, down), self.mixing.beside(widths, x)), up)

    def increments(self) -> list[Increment]:
        constant, found = self.mixing.constant, list[Increment]()
        steady = {} if constant is None else constant.scales(1, self.weight.device)
        for name, scale in (*steady.items(), *self.mixing.scales.items()):
            if not isinstance(scale, float):
                raise ConfigError("the method weighs its adapters by sample, not by group; export a bundle.")
            group = self.groups[name]
            assert isinstance(group, HasIncrement)
            found.append(group.increment(scale))
        return found


class Bank:
    """All banked layers of a model and the mixing they share. Not a module: the layers live in the model's tree."""

    def __init__(self, layers: Mapping[str, BankedLinear], mixing: Mixing) -> None:
        assert layers, "a bank without layers adapts nothing"
        self.layers = dict(layers)
        self.mixing = mixing

    def add_group(self, name: str, *, num_pairs: int, rank: int, init: Init, seed: int, dropout: float = 0.0) -> None:
        """Append a trainable group to every layer. The draw depends on (seed, name, layer) only."""
        for layer_name, layer in self.layers.items():
            assert name not in layer.groups, f"group {name!r} is already in {layer_name}"
            pairs = LowRankPairs(layer, num_pairs=num_pairs, rank=rank, dropout=dropout)
            pairs.init_down(init, seeded_generator(seed, name, layer_name))
            pairs.train(layer.training)
            layer.groups[name] = pairs

    def copy_group(self, source: str, target: str) -> None:
        """Append a frozen copy of `source` under the name `target`."""
        for layer in self.layers.values():
            original = layer.groups[source]
            assert isinstance(original, LowRankPairs)
            num_pairs = original.down.shape[0] // original.rank
            copy = LowRankPairs(layer, num_pairs=num_pairs, rank=original.rank, dropout=0.0)
            with torch.no_grad():
                copy.down.copy_(original.down)
                copy.up.copy_(original.up)
            layer.groups[target] = copy.requires_grad_(False)

    def remove_group(self, name: str) -> None:
        """Take a group out of every layer."""
        for layer in self.layers.values():
            del layer.groups[name]

    @property
    def group_names(self) -> list[str]:
        """Groups in the order they were added."""
        return list(next(iter(self.layers.values())).groups)

    def set_trainable(self, group: str, trainable: bool) -> None:
        """Let a group train, or freeze it."""
        for layer in self.layers.values():
            layer.groups[group].requires_grad_(trainable)

    def group_parameters(self, group: str) -> dict[str, nn.Parameter]:
        """A group's parameters under the names they have in the model's state dict."""
        return {
            f"{layer_name}.groups.{group}.{name}": parameter
            for layer_name, layer in self.layers.items()
            for name, parameter in layer.groups[group].named_parameters()
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every group's parameters under the names they have in the model's state dict."""
        return {key: value for group in self.group_names for key, value in self.group_parameters(group).items()}


def seeded_generator(seed: int, *labels: str) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments (never on the global random state)."""
    digest = hashlib.sha256("\0".join([str(seed), *labels]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
