"""A low-rank pair whose change avoids given directions of its inputs, and a record of the directions of inputs seen.

A linear map W answers inputs x in span(U) as before if its change D satisfies D U = 0. Projecting gradients is not
enough under Adam, which scales entries one by one and so leaves the subspace. The trained values are projected instead,

    W = start + (theta - start) (I - U U^T) = theta (I - U U^T) + (start U) U^T

which is computed on the input's side, x' = x - U U^T x, so no matrix of W's size is ever built while training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.compute import weight
from components.adapters.low_rank import LowRankPairs
from components.adapters.mixing import Chosen, Scale, scaled

NOISE = 1e-12  # share of all energy below which a direction is rounding (float32 inputs: 1e-7 of amplitude, squared)


class ProjectedPairs(LowRankPairs):
    """A low-rank pair for which one can fix on which inputs `down` and `up` keep their outputs.

    Between `protect` and `settle` both factors act as their projected values; otherwise it is a plain pair.
    Bases and starts are buffers outside the state dict: ZeRO-3 empties parameters, but not buffers.
    """

    down_basis: Tensor | None  # U [d_in, k] float32, orthonormal columns
    down_start: Tensor | None  # start U [R, k]
    up_basis: Tensor | None  # V [R, l]
    up_start: Tensor | None  # start V [d_out, l]

    def __init__(self, pairs: LowRankPairs) -> None:
        """Takes over the parameters of `pairs`, as the same objects."""
        nn.Module.__init__(self)  # not the base's: nothing to draw
        self.rank, self.dropout = pairs.rank, pairs.dropout
        self.down, self.up = pairs.down, pairs.up
        for name in ("down_basis", "down_start", "up_basis", "up_start"):
            self.register_buffer(name, None, persistent=False)
        self.train(pairs.training)

    @torch.no_grad()
    def protect(self, down_basis: Tensor, up_basis: Tensor) -> None:
        """From here on `down` answers span(U) [d_in, k], and `up` span(V) [R, l], as it does now. Both may be empty."""
        if down_basis.shape[1]:
            self.down_basis = down_basis.to(self.down)
            self.down_start = self.down @ self.down_basis
        if up_basis.shape[1]:
            self.up_basis = up_basis.to(self.up)
            self.up_start = self.up @ self.up_basis

    @torch.no_grad()
    def effective(self) -> tuple[Tensor, Tensor]:
        """The values `down` and `up` act as."""
        down = _projected(self.down, self.down_basis, self.down_start)
        return down, _projected(self.up, self.up_basis, self.up_start)

    @torch.no_grad()
    def settle(self) -> None:
        """Make the parameters what they act as, and protect nothing any more."""
        down, up = self.effective()
        self.down.copy_(down)
        self.up.copy_(up)
        self.down_basis = self.down_start = self.up_basis = self.up_start = None

    def forward(self, x: Tensor, scale: Scale | Chosen) -> Tensor:
        """x [B, T, d_in] -> increment [B, T, d_out], computed in x's dtype."""
        assert not isinstance(scale, Chosen), "all of a projected pair serves"
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        inner = _linear(x, self.down, self.down_basis, self.down_start)
        return _linear(scaled(inner, scale), self.up, self.up_basis, self.up_start)


def _linear(x: Tensor, theta: Tensor, basis: Tensor | None, start: Tensor | None) -> Tensor:
    if basis is None or start is None:
        return F.linear(x, weight(theta, x.dtype))
    if x.dtype != theta.dtype:
        # Rounded inputs would let through a part of what is protected: the factor is projected, in float32, and rounded
        # as any other weight. It is thin, so this costs less than projecting the inputs.
        return F.linear(x, (theta + (start - theta @ basis) @ basis.T).to(x.dtype))
    inside = x @ basis
    return F.linear(x - inside @ basis.T, theta) + F.linear(inside, start)


def _projected(theta: Tensor, basis: Tensor | None, start: Tensor | None) -> Tensor:
    if basis is None or start is None:
        return theta
    wide = basis.double()
    return (theta.double() + (start.double() - theta.double() @ wide) @ wide.T).to(theta.dtype)


class InputGrams:
    """Sums of x x^T over the inputs x of some layers [d_in, d_in] float64, by the layers' names.

    d_in^2 * 8 bytes per layer on the layers' device (134 MB at 4096). `pop` hands one out and frees it here.
    """

    def __init__(self, layers: Mapping[str, nn.Linear]) -> None:
        self.layers = dict(layers)
        self.sums = {
            name: torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64, device=layer.weight.device)
            for name, layer in layers.items()
        }

    @contextmanager
    def recording(self, mask: Tensor) -> Iterator[None]:
        """Add the inputs of every forward pass in this scope at the positions where `mask` [B, T] is not zero."""
        kept = mask.bool()

        def add(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].detach()[kept.to(inputs[0].device)].double()
            self.sums[name].addmm_(rows.T, rows)

        with ExitStack() as hooks:
            for name, layer in self.layers.items():
                hooks.callback(layer.register_forward_pre_hook(partial(add, name)).remove)
            yield

    def pop(self, name: str) -> Tensor:
        """The sum of layer `name`; it is not kept here any longer."""
        return self.sums.pop(name)


def grown_basis(basis: Tensor, gram: Tensor, *, energy: float) -> Tensor:
    """`basis` [d, k] with the fewest orthonormal columns appended that make it hold a share `energy` of `gram`'s trace.

    gram [d, d] float64 = sum of x x^T, any scale. What `basis` already holds counts; new directions are the leading
    eigenvectors of the rest. Directions under `NOISE` of the trace are never taken, so energy = 1 takes the span of x.
    """
    total = gram.trace()
    values, vectors = _outside(basis, gram)
    missing = values.flip(0).cumsum(0).flip(0)  # entry i: energy not held before direction i is taken
    taken = (missing > (1.0 - energy + NOISE) * total) & (values > NOISE * total)
    return torch.cat([basis, _orthonormal(basis, vectors[:, : int(taken.sum())]).to(basis)], dim=1)


def leading_directions(basis: Tensor, gram: Tensor, *, count: int) -> Tensor:
    """The at most `count` strongest orthonormal directions of `gram` [d, d] outside span(`basis`) [d, k] -> [d, c].

    With gram = G^T G these are the leading right singular vectors of G (I - U U^T), strongest first. Fewer where less
    than that is above `NOISE` of gram's trace. float64 on `gram`'s device.
    """
    values, vectors = _outside(basis, gram)
    found = int((values[:count] > NOISE * gram.trace()).sum())
    return _orthonormal(basis, vectors[:, :found])


def _outside(basis: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and eigenvectors [d, d] of the part of `gram` that `basis` does not hold."""
    old = basis.to(gram)
    rest = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) - old @ old.T
    values, vectors = torch.linalg.eigh(rest @ gram @ rest)
    return values.flip(0).clamp(min=0.0), vectors.flip(1)


def _orthonormal(basis: Tensor, new: Tensor) -> Tensor:
    """`new` made orthonormal outside span(`basis`): weak directions may lean on strong ones of a rounded basis."""
    old = basis.to(new)
    return torch.linalg.qr(new - old @ (old.T @ new)).Q
