"""What the workers of a run tell each other beside their computations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

FoundT = TypeVar("FoundT")


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Which parts of a table's rows this process answers. Rows are cut into as many parts as the run has workers,
    whoever answers them: batches, and with them the bits of replies, follow from the parts.
    """

    own: tuple[int, ...]
    of: int
    rank: int  # among the processes that answer together; 0 scores and writes
    world_size: int  # how many these are
    beside: bool = False  # this process is none of the workers

    @classmethod
    def of_worker(cls, rank: int, num_workers: int) -> Shares:
        """One part for each worker."""
        return cls(own=(rank,), of=num_workers, rank=rank, world_size=num_workers)

    @classmethod
    def all_of(cls, num_workers: int) -> Shares:
        """All parts, one after another, by one process that is no worker."""
        return cls(own=tuple(range(num_workers)), of=num_workers, rank=0, world_size=1, beside=True)


def of_rank_0(found: FoundT) -> FoundT:
    """What rank 0 found in the storage, on all ranks. Each of them must call it; another could see otherwise later."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return found
    said = [found]
    dist.broadcast_object_list(said, src=0)
    return said[0]
