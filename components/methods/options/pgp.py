"""Options of method pgp. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from components.core.options import CountOrZero, Share
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.methods.pgp import Pgp


@dataclass(frozen=True, kw_only=True)
class PgpConfig(SequentialLoraConfig):
    """Sequential LoRA whose updates are projected away from the inputs of earlier tasks (gradient projection)."""

    name: ClassVar[str] = "pgp"

    energy: Share = 0.97
    """Share of a task's input energy that is held; 0.97 at the first task of GPM's code for CIFAR-100."""
    up: Literal["project", "freeze", "free"] = "project"
    """What the up factor may do after the first task: see the class."""
    basis_samples: CountOrZero = 128
    """Samples per worker and task, the first of its training order (GPM's code: 125); 0 takes all."""

    @property
    def result_depends_on(self) -> tuple[str, ...]:
        return ("cluster.num_workers",) if self.basis_samples else ()

    def build(self, *, seed: int) -> Pgp:
        from components.methods.pgp import Pgp

        return Pgp(self, seed=seed)
