"""Which groups of a bank serve a batch, and with which weights.

Shape letters: B batch, T tokens, K pairs, S pairs of one group, R rank, C columns: the ranks of all pairs that count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from components.adapters.compute import shared
from components.adapters.joined import Constant, rows_of
from components.adapters.present import present

Scale = float | Tensor  # a constant, or [B, 1, S*R] / [1, 1, S*R]


@dataclass(frozen=True, eq=False)
class Chosen:
    """Scales of some of a group's pairs; the others have no weight in the whole batch and are not computed."""

    scale: Tensor  # [B, 1, k*R]
    pairs: tuple[int, ...]  # k of range(S), in order
    rows: Tensor  # [k*R] int64, theirs in the group's factors


Scales = Mapping[str, Scale | Chosen]


class Mixing:
    """The scales in force, shared by every layer of one bank; a group that is not named is skipped.

    `resting` holds outside every `using` scope: empty for banks that serve only selected samples, a constant for LoRA.
    """

    def __init__(self) -> None:
        self.resting: dict[str, Scale] = {}
        self.scales: Scales = self.resting
        self.constant: Constant | None = None  # what frozen groups add beside the scales
        self._beside: dict[tuple[str, ...], Tensor] = {}  # `beside` of this scope

    def rest_at(self, group: str, scale: float) -> None:
        """Apply `group` with a constant scale outside every `using` scope."""
        self.resting[group] = scale

    @contextmanager
    def using(self, scales: Scales, constant: Constant | None = None) -> Iterator[None]:
        """Put `scales` and `constant` in force; the previous ones are restored on exit, even after an exception."""
        before = self.scales, self.constant, self._beside
        self.scales, self.constant, self._beside = scales, constant, {}
        try:
            yield
        finally:
            self.scales, self.constant, self._beside = before

    def beside(self, widths: Mapping[str, int], like: Tensor) -> Tensor:
        """The scales of these groups, each S*R wide, beside each other without pairs that are left out [B or 1, 1, C].

        Joined by operations that keep nothing for the backward pass: recomputation under checkpointing skips them.
        """
        key = tuple(widths)
        if key not in self._beside:
            parts = [_columns(self.scales[name], width, like) for name, width in widths.items()]
            batch = max(len(part) for part in parts)
            self._beside[key] = torch.cat([part.expand(batch, -1, -1) for part in parts], dim=2)
        return self._beside[key]


def _columns(scale: Scale | Chosen, width: int, like: Tensor) -> Tensor:
    """[B or 1, 1, width] float32 on the device of `like`."""
    if isinstance(scale, Chosen):
        return scale.scale
    if isinstance(scale, Tensor):
        return scale.expand(-1, -1, width)
    return torch.full((1, 1, width), scale, device=like.device)


def scales_from_weights(
    weights: Tensor, groups: Sequence[str], *, rank: int, used: Tensor | None = None
) -> dict[str, Scale | Chosen]:
    """Per-sample weights [B, K] as scales of equally large groups (K / len(groups) pairs each, in order).

    Pairs that are not `used` [K] bool (None: whose weights are zero in the whole batch) are left out. Gradients flow
    back to `weights`; to all of a group that is not left out whole where `used` is not told.
    """
    num_pairs = weights.shape[1]
    assert num_pairs % len(groups) == 0, f"{num_pairs} weights do not divide into {len(groups)} equal groups"
    size = num_pairs // len(groups)
    if used is None:
        used = (weights.detach() != 0).any(dim=0)
        if weights.requires_grad:  # a weight of zero may be learned
            used = used.view(-1, size).any(dim=1).repeat_interleave(size)
    found: dict[str, Scale | Chosen] = {}
    for name, columns, flags in zip(groups, weights.split(size, dim=1), used.view(-1, size).tolist(), strict=True):
        pairs = tuple(pair for pair, flag in enumerate(flags) if flag)
        if not pairs:
            continue
        if len(pairs) == size:
            found[name] = columns.repeat_interleave(rank, dim=1).unsqueeze(1)
        else:
            rows = rows_of(pairs, rank, weights.device)
            found[name] = Chosen(columns.repeat_interleave(rank, dim=1)[:, rows].unsqueeze(1), pairs, rows)
    return found


def scaled(hidden: Tensor, scale: Scale | Chosen) -> Tensor:
    """hidden * scale in hidden's dtype; all layers share one cast of the scale. Chosen pairs are those of `hidden`."""
    scale = scale.scale if isinstance(scale, Chosen) else scale
    return hidden * (shared(present(scale), hidden.dtype) if isinstance(scale, Tensor) else scale)
