"""Options of method replay. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from components.core.options import Count
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.methods.replay import Replay


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(SequentialLoraConfig):
    """Sequential LoRA over the task's rows and a few stored rows of every earlier task."""

    name: ClassVar[str] = "replay"
    offers_projector: ClassVar[bool] = True
    is_task_free: ClassVar[bool] = True  # stored rows are drawn from what was just learned, whatever task they are of
    samples_per_task: Count = 100
    """Rows kept of every past task; CoIN's ablation stores 100, 500 or 1000."""

    @classmethod
    def tiny(cls) -> Self:
        return cls(samples_per_task=8)

    @property
    def stored_samples(self) -> int:
        return self.samples_per_task

    def build(self, *, seed: int) -> Replay:
        from components.methods.replay import Replay

        return Replay(self, seed=seed)
