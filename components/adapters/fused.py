"""Several low-rank pairs merged factor by factor into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.low_rank import LowRankPairs
from components.adapters.mixing import Scale, scaled


class FusedPairs(nn.Module):
    """The pair whose factors are the sums of its members' factors: (sum_i up_i) (sum_i down_i).

    That is the sum of the members' increments plus all cross terms up_i down_j. It is one more group of
    the members' layer, has no parameters of its own, and follows the members when they change. It reads parameters of
    other modules, so it must not serve inside an engine that partitions them (ZeRO-3); evaluation has whole models.
    """

    def __init__(self, members: Sequence[LowRankPairs]) -> None:
        super().__init__()
        assert members, "there is nothing to fuse"
        self.members = list(members)  # a plain list: the layer's groups own them

    def forward(self, x: Tensor, scale: Scale) -> Tensor:
        """x [B, T, d_in] -> increment [B, T, d_out], computed in x's dtype from float32 sums."""
        down = torch.stack([member.down for member in self.members]).sum(dim=0)
        up = torch.stack([member.up for member in self.members]).sum(dim=0)
        return F.linear(scaled(F.linear(x, down.to(x.dtype)), scale), up.to(x.dtype))
