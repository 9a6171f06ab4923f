"""Frozen low-rank pairs as one pair, or as a part of the frozen weight: what does not train is not computed apart.

Copies are made of the parameters by the same operations whatever was computed before, so that a continued run computes
with the same bits as one that was never stopped. A copy is made anew when a parameter has changed.

Shape letters: S pairs of one group, R rank, C columns: the ranks of all pairs that have a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

FOLDED_FROM = 0.5  # share of a dense matrix's numbers that the factors must have to be folded into one

Pairs = Mapping[str, tuple[int, ...] | None]  # by group those of its pairs that count; None: all


class Group(Protocol):
    """Pairs of one layer, flat."""

    rank: int
    down: Tensor  # [S*R, d_in]
    up: Tensor  # [d_out, S*R]


@dataclass(frozen=True)
class Constant:
    """What frozen groups add to a layer for all samples alike. Two that are equal add the same."""

    weights: tuple[tuple[str, tuple[float, ...]], ...]  # by group, the weight of each of its S pairs
    tokens: int | None = field(default=None, compare=False)
    """How many tokens it is sure to serve; None: those of a whole task."""

    @classmethod
    def even(cls, groups: Iterable[str], weight: float) -> Constant | None:
        """Groups of one pair each, all with one weight; None without groups."""
        weights = tuple((name, (weight,)) for name in groups)
        return cls(weights) if weights and weight else None

    @classmethod
    def of_row(cls, row: Tensor, groups: Sequence[str], *, tokens: int | None) -> Constant | None:
        """From the weights [K] of equally large groups; None where all are zero."""
        parts = zip(groups, row.view(len(groups), -1).tolist(), strict=True)
        weights = tuple((name, tuple(part)) for name, part in parts if any(part))
        return cls(weights, tokens) if weights else None

    @property
    def groups(self) -> list[str]:
        return [name for name, _ in self.weights]

    @property
    def pairs(self) -> Pairs:
        return {name: tuple(i for i, value in enumerate(part) if value) for name, part in self.weights}

    def num_columns(self, rank: int) -> int:
        return rank * sum(value != 0 for _, part in self.weights for value in part)

    def columns(self, rank: int, like: Tensor) -> Tensor:
        """The weights of `pairs`, each R times [C]."""
        values = [value for _, part in self.weights for value in part if value]
        return torch.tensor(values, dtype=like.dtype).repeat_interleave(rank).to(like.device)

    def scales(self, rank: int, device: torch.device) -> dict[str, float | Tensor]:
        """The same as scales of the groups, for where they are computed one by one."""
        return {
            name: part[0]
            if len(set(part)) == 1
            else torch.tensor(part).repeat_interleave(rank).view(1, 1, -1).to(device)
            for name, part in self.weights
        }


@dataclass(frozen=True)
class _Copy:
    key: object
    sources: list[tuple[Tensor, int, int]]  # parameters, their versions and places
    tensors: tuple[Tensor, ...]

    def fits(self, key: object, sources: list[tuple[Tensor, int, int]]) -> bool:
        # The objects themselves: an equal id may be that of one which was freed.
        return (
            self.key == key
            and len(self.sources) == len(sources)
            and all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(self.sources, sources, strict=True))
        )


class Copies:
    """The latest copies of each kind that a layer made of its frozen groups."""

    def __init__(self) -> None:
        self._kept: dict[str, _Copy] = {}

    def pair(self, groups: Mapping[str, Group], pairs: Pairs, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """down [C, d_in] and up [d_out, C] of these pairs."""
        key = dtype, tuple(pairs.items())
        return self._get("pair", key, parameters(groups), lambda: _beside(groups, pairs, dtype))

    def constant(self, groups: Mapping[str, Group], constant: Constant, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """down [C, d_in] and up [d_out, C] with the constant's weights in it."""
        key = dtype, constant
        return self._get("constant", key, parameters(groups), lambda: _weighed(groups, constant, dtype))

    def folded(self, groups: Mapping[str, Group], constant: Constant, weight: Tensor) -> Tensor:
        """weight [d_out, d_in] with the constant added to it."""

        def fold() -> tuple[Tensor, ...]:
            down, up = _weighed(groups, constant, weight.dtype)
            return (torch.addmm(weight, up, down),)

        return self._get("folded", constant, [weight, *parameters(groups)], fold)[0]

    def _get(
        self, kind: str, key: object, sources: Sequence[Tensor], make: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        seen = [(each, each._version, each.data_ptr()) for each in sources]
        kept = self._kept.get(kind)
        if kept is None or not kept.fits(key, seen):
            self._kept.pop(kind, None)  # freed before its successor takes memory
            with torch.inference_mode(False), torch.no_grad():  # made while answering, used for a gradient later
                kept = self._kept[kind] = _Copy(key, seen, make())
        return kept.tensors


def parameters(groups: Mapping[str, Group]) -> list[Tensor]:
    """The factors of all groups."""
    return [each for group in groups.values() for each in (group.down, group.up)]


def pays_to_fold(constant: Constant, rank: int, weight: Tensor) -> bool:
    """Whether a constant is added to the weight [d_out, d_in] rather than computed apart; known from shapes alone.

    Memory: the copy may have at most twice the numbers of the factors. Work: to make it takes C d_out d_in products, to
    compute apart takes tokens C (d_out + d_in). Beside bfloat16 the sum would be rounded.
    """
    dense, both = weight.numel(), sum(weight.shape)
    large = constant.num_columns(rank) * both >= FOLDED_FROM * dense
    return weight.dtype == torch.float32 and large and (constant.tokens is None or constant.tokens * both >= dense)


def rows_of(pairs: Sequence[int], rank: int, device: torch.device) -> Tensor:
    """Where the ranks of these pairs are in a group's factors [len(pairs) * R] int64."""
    starts = torch.tensor(pairs, dtype=torch.int64).unsqueeze(1) * rank
    return (starts + torch.arange(rank)).flatten().to(device)


def _beside(groups: Mapping[str, Group], pairs: Pairs, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    downs, ups = [], []
    for name, chosen in pairs.items():
        down, up, rank = groups[name].down, groups[name].up, groups[name].rank
        if chosen is not None and len(chosen) * rank < len(down):
            rows = rows_of(chosen, rank, down.device)
            down, up = down.index_select(0, rows), up.index_select(1, rows)
        downs.append(down)
        ups.append(up)
    return torch.cat(downs).to(dtype), torch.cat(ups, dim=1).to(dtype)


def _weighed(groups: Mapping[str, Group], constant: Constant, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    down, up = _beside(groups, constant.pairs, torch.float32)
    rank = next(iter(groups.values())).rank
    return down.to(dtype), (up * constant.columns(rank, up)).to(dtype)
