"""Options of method merging. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from components.core.errors import ConfigError
from components.core.options import Positive, PositiveShare, ShareBelowOne
from components.methods.options.base import ExportFormat
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.methods.merging import Merging

MergeRule = Literal["average", "task_arithmetic", "ties", "dare"]


@dataclass(frozen=True, kw_only=True)
class MergingConfig(SequentialLoraConfig):
    """A LoRA branch per task, learned apart; after each task all are merged into one that serves everything."""

    name: ClassVar[str] = "merging"

    rule: MergeRule = "task_arithmetic"
    """How the tasks' increments are merged."""
    coefficient: Positive | None = None
    """Lambda on the merged increment; None takes 0.4, for ties 1, see the class."""
    keep: PositiveShare = 0.2
    """Share of a task's entries that survive the trimming of ties."""
    drop_rate: ShareBelowOne = 0.9
    """Probability that dare drops an entry."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule == "average" and self.coefficient is not None:
            raise ConfigError(
                f'merging.coefficient is {self.coefficient}, but rule "average" weighs every task by 1 / number of '
                'tasks; leave the coefficient out or take rule "task_arithmetic".'
            )

    @property
    def export_formats(self) -> tuple[ExportFormat, ...]:
        formats = super().export_formats
        return formats if self.rule in ("average", "task_arithmetic") else formats[1:]  # a dense merge is no LoRA

    def build(self, *, seed: int) -> Merging:
        from components.methods.merging import Merging

        return Merging(self, seed=seed)
