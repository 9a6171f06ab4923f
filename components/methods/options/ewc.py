"""Options of method ewc. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from components.core.errors import ConfigError
from components.core.options import CountOrZero, NonNegative, Share
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.methods.ewc import Ewc


@dataclass(frozen=True, kw_only=True)
class EwcConfig(SequentialLoraConfig):
    """Sequential LoRA whose important parameters are held near their earlier values (Fisher information)."""

    name: ClassVar[str] = "ewc"

    penalty_weight: NonNegative = 300.0
    """Lambda of the penalty; how it was chosen: see the class, last point."""
    estimator: Literal["sample", "batch"] = "sample"
    """How the Fisher information is estimated: exactly by sample, or per batch, biased and cheaper."""
    fisher_samples: CountOrZero = 128
    """Samples per worker and task, the first of its training order; 0 takes all."""
    accumulate: Literal["online", "separate"] = "online"
    """One quadratic around the latest optimum (online), or one per task (separate)."""
    decay: Share = 1.0
    """Gamma of online: what earlier tasks' Fisher keeps of its weight at every new task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accumulate == "separate" and self.decay != 1.0:
            raise ConfigError(f'ewc.decay is {self.decay}; ewc.accumulate = "separate" forgets nothing, leave it at 1.')

    @property
    def result_depends_on(self) -> tuple[str, ...]:
        summed = ("cluster.num_workers", "training.micro_batch_size") if self.estimator == "batch" else ()
        return summed or (("cluster.num_workers",) if self.fisher_samples else ())

    def build(self, *, seed: int) -> Ewc:
        from components.methods.ewc import Ewc

        return Ewc(self, seed=seed)
