"""Merged increments, which are dense and no longer of low rank, one per layer, and the rules that make them.

Trimming, electing signs and dropping act on entries of an increment dW [d_out, d_in], so their result cannot be kept as
two thin factors. It costs d_out * d_in float32 values per adapted layer, as much as the frozen layer itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.compute import weight
from components.adapters.mixing import Scale

HALF = 16  # bits of a float32 that one pass of `kth_magnitude` reads


class DenseIncrement(nn.Module):
    """A group of a `BankedLinear` that is one dense matrix. Never trained.

    A buffer outside the state dict: it follows from the branches, and ZeRO-3 empties parameters, but not buffers.
    """

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        """weight [d_out, d_in] float32."""
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor, scale: Scale) -> Tensor:
        """x [B, T, d_in] -> increment [B, T, d_out], computed in x's dtype; `scale` is a constant."""
        assert isinstance(scale, float), "a merged increment serves all samples alike"
        return F.linear(x, weight(self.weight, x.dtype)) * scale

    def increment(self, scale: float) -> Tensor:
        """What it adds to the layer's weight."""
        return self.weight * scale


def kth_magnitude(parts: Callable[[], Iterable[Tensor]], k: int) -> float:
    """The k-th largest |entry| (1-based) of all float32 tensors that `parts()` yields, exact.

    A vector over all layers may be larger than memory allows to sort. The bits of floats without sign, read as
    integers, are ordered as the floats are: one pass over the parts counts upper halves and finds the one of the k-th
    entry, another does so for the lower halves below it. `parts` is called twice and must yield the same bits.
    """
    upper, rest = _from_the_top(sum_counts(_bits(part) >> HALF for part in parts()), k)
    low = (bits[bits >> HALF == upper] & (2**HALF - 1) for bits in map(_bits, parts()))
    lower, _ = _from_the_top(sum_counts(low), rest)
    return float(torch.tensor(upper << HALF | lower, dtype=torch.int32).view(torch.float32))


def sum_counts(parts: Iterable[Tensor]) -> Tensor:
    """How often each value of 0 .. 2^16 - 1 is in all of `parts` (1-d integers) [2^16] int64."""
    counts = torch.zeros(2**HALF, dtype=torch.int64)
    for part in parts:
        counts += torch.bincount(part, minlength=2**HALF)
    return counts


def _bits(part: Tensor) -> Tensor:
    return part.abs().flatten().view(torch.int32)


def _from_the_top(counts: Tensor, k: int) -> tuple[int, int]:
    """The value of the k-th largest of the counted ones, and how many-th it is among its equals."""
    at_least = counts.flip(0).cumsum(0)  # entry i: how many are at least 2^16 - 1 - i
    place = int(torch.searchsorted(at_least, k))
    assert place < len(counts), f"fewer than {k} entries"
    above = int(at_least[place - 1]) if place else 0
    return len(counts) - 1 - place, k - above


def elect_and_average(increments: Iterable[Tensor]) -> Tensor:
    """Per entry: the sign with more mass (sum of magnitudes), and the mean of the values that have it. Equal masses: 0.

    Zeros take no part in the mean. Goes over the increments once; memory does not grow with their number.
    """
    positive = negative = num_positive = num_negative = torch.zeros(())
    for increment in increments:
        positive = positive + increment.clamp(min=0.0)
        negative = negative + increment.clamp(max=0.0)
        num_positive = num_positive + (increment > 0)
        num_negative = num_negative + (increment < 0)
    mass = positive + negative
    elected = torch.where(mass < 0, negative / num_negative.clamp(min=1.0), 0.0)
    return torch.where(mass > 0, positive / num_positive.clamp(min=1.0), elected)


def trim(increment: Tensor, threshold: float) -> Tensor:
    """`increment` with zeros where the magnitude is below `threshold`."""
    return torch.where(increment.abs() >= threshold, increment, 0.0)


def drop_and_rescale(increment: Tensor, drop_rate: float, generator: torch.Generator) -> Tensor:
    """`increment` with every entry dropped with probability `drop_rate`, independently; what stays is scaled up.

    The expectation is the increment itself. `increment` and `generator` are on the CPU.
    """
    stays = torch.rand(increment.shape, generator=generator) >= drop_rate
    return torch.where(stays, increment / (1.0 - drop_rate), 0.0)
