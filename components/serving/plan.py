"""Which checkpoint answers which request. Pure: the same request always goes the same way, on every replica."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple


class Place(NamedTuple):
    """A checkpoint: a run in the storage that is served from, and the task after which it was kept."""

    run: str
    number: int  # of the task, from 1
    task: str
    version: str = ""  # of the registered model that named it, `shop/3`; empty where a run was named

    def __str__(self) -> str:
        return f"{self.run}/{self.number:02d}-{self.task}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who answers. Shares are 0..1."""

    primary: Place
    canary: Place | None = None
    canary_share: float = 0.0
    shadow: Place | None = None
    shadow_share: float = 0.0

    @property
    def places(self) -> list[Place]:
        """All checkpoints that must be in memory, each once."""
        return list(dict.fromkeys(place for place in (self.primary, self.canary, self.shadow) if place is not None))

    def answers(self, request: bytes) -> tuple[Place, str]:
        """The checkpoint that answers this request (its canonical bytes), and its role."""
        if self.canary is not None and share_of(b"canary", request) < self.canary_share:
            return self.canary, "canary"
        return self.primary, "primary"

    def shadowed(self, request: bytes) -> Place | None:
        """The checkpoint that answers it a second time, unseen."""
        return self.shadow if share_of(b"shadow", request) < self.shadow_share else None


def share_of(salt: bytes, request: bytes) -> float:
    """A number in [0, 1) that depends on the request alone and is spread evenly over requests."""
    return int.from_bytes(hashlib.sha256(salt + b"\0" + request).digest()[:7], "big") / (1 << 56)
