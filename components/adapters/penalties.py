"""Penalties on adapter parameters, as modules: a scalar from parameters that other modules own.

ZeRO-3 keeps parameters in pieces and makes a module's own ones whole around that module's `forward`, and nowhere else.
A penalty therefore registers the parameters it reads as its own too: the same objects, so nothing is copied, the model
lists each of them once (under the name of its first owner), and its gradient gathers both contributions. Put a penalty
into the model's tree before the engine is built, call it inside the engine's forward (a method's `select` scope), and
take it out after the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn


class PenaltySum(nn.ModuleList):
    """The sum of its penalties. One per layer keeps what ZeRO-3 gathers at a time small."""

    def forward(self) -> Tensor:
        """-> float32 scalar."""
        return torch.stack([cast(Tensor, penalty()) for penalty in self]).sum()


class QuadraticPenalty(nn.Module):
    """sum over all entries of weight * (parameter - anchor)^2; weights and anchors are constants."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], anchors: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> None:
        super().__init__()
        self.size = len(parameters)
        for index, (parameter, anchor, weight) in enumerate(zip(parameters, anchors, weights, strict=True)):
            assert parameter.shape == anchor.shape == weight.shape
            self.register_parameter(f"parameter_{index}", parameter)
            # clones: a buffer moves with the model, the caller's tensors stay where they are
            self.register_buffer(f"anchor_{index}", anchor.to(parameter.device, copy=True), persistent=False)
            self.register_buffer(f"weight_{index}", weight.to(parameter.device, copy=True), persistent=False)

    def forward(self) -> Tensor:
        """-> float32 scalar, >= 0 for weights >= 0."""
        terms = []
        for index in range(self.size):
            drift = self.get_parameter(f"parameter_{index}") - self.get_buffer(f"anchor_{index}")
            terms.append((self.get_buffer(f"weight_{index}") * drift.square()).sum())
        return torch.stack(terms).sum()


class OverlapPenalty(nn.Module):
    """How much the rows of `new` [R, d] point along the rows of the `old` ones, each [R_i, d]; these are constants."""

    def __init__(self, new: nn.Parameter, old: Sequence[nn.Parameter], kind: Literal["absolute", "squared"]) -> None:
        super().__init__()
        assert old, "without earlier directions there is no overlap"
        self.new = new
        self.num_old = len(old)
        self.kind = kind
        for index, parameter in enumerate(old):
            self.register_parameter(f"old_{index}", parameter)

    def forward(self) -> Tensor:
        """-> float32 scalar: the sum over all entries of old new^T [sum R_i, R], each absolute or squared."""
        old = torch.cat([self.get_parameter(f"old_{index}").detach() for index in range(self.num_old)])
        products = old @ self.new.T
        return products.abs().sum() if self.kind == "absolute" else products.square().sum()


class NormPenalty(nn.Module):
    """Sum of the Frobenius norms (not squared) of some parameters; the gradient at zero is zero."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.size = len(parameters)
        for index, parameter in enumerate(parameters):
            self.register_parameter(f"parameter_{index}", parameter)

    def forward(self) -> Tensor:
        """-> float32 scalar."""
        return torch.stack([self.get_parameter(f"parameter_{index}").norm() for index in range(self.size)]).sum()


class MarkedPenalty(nn.Module):
    """Mean magnitude of the marked entries of one layer's update up down [d_out, d_in].

    The product is built densely and thrown away: as many multiplications as R more tokens cost in the layer itself, in
    fast matrix products, while gathering the factors at K marks would keep 2 K R values for the backward pass.
    """

    def __init__(self, down: nn.Parameter, up: nn.Parameter, marks: Tensor) -> None:
        """`marks` are places row * d_in + column; one that is listed twice weighs twice."""
        super().__init__()
        assert marks.numel(), "a mean needs marks"
        self.down = down
        self.up = up
        places, counts = marks.long().unique(return_counts=True)
        self.register_buffer("places", places.to(down.device), persistent=False)
        self.register_buffer("shares", (counts / counts.sum()).to(down.device), persistent=False)

    def forward(self) -> Tensor:
        """-> float32 scalar: sum over distinct marks of share * |(up down) there|; shares sum to 1."""
        entries = (self.up @ self.down).flatten().index_select(0, self.get_buffer("places"))
        return (self.get_buffer("shares") * entries.abs()).sum()
