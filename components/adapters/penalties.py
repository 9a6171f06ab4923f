"""Penalties on adapter parameters, as modules: a scalar from parameters that other modules own.

ZeRO-3 keeps parameters in pieces and makes a module's own ones whole around that module's `forward`, and nowhere else.
A penalty therefore registers the parameters it reads as its own too: the same objects, so nothing is copied, the model
lists each of them once (under the name of its first owner), and its gradient gathers both contributions. Put a penalty
into the model's tree before the engine is built, call it inside the engine's forward (a method's `select` scope), and
take it out after the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

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
