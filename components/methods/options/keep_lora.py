"""Options of method keep_lora. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from components.core.errors import ConfigError
from components.core.options import Count, Positive, PositiveShare, Share
from components.methods.options.base import Export
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.methods.keep_lora import KeepLora


@dataclass(frozen=True, kw_only=True)
class KeepLoraConfig(SequentialLoraConfig):
    """A LoRA per task, all summed; its down-projection is fixed by the task's gradient outside protected inputs.

    Rank and alpha are those of one branch.
    """

    name: ClassVar[str] = "keep_lora"
    export: ClassVar[Export] = "plain"
    is_stochastic: ClassVar[bool] = False
    default_learning_rate: ClassVar[float] = 1e-3  # ten times the code's, as LoRA's is here (2e-3, not 2e-4)

    rank: Count = 64
    """Rank of one branch, the code's; only up trains, so as much trains as in sequential LoRA of rank 32."""
    alpha: Positive = 128.0
    """A branch is scaled by alpha / rank: 2, as in the code."""
    weight_energy: Share = 0.6
    """Share of the pretrained weights' energy that is protected from the start (the code's)."""
    task_energy: Share = 0.99
    """Share of a learned task's energy that is protected from then on (the code's)."""
    protects: Literal["inputs", "gradients"] = "inputs"
    """Whose directions are protected after a task: inputs or gradients, see the class."""
    sample_share: PositiveShare = 0.2
    """Share of a task's updates whose samples the calibration looks at (the LLaVA code's)."""

    @classmethod
    def tiny(cls) -> Self:
        return cls(rank=8, alpha=16.0)  # the pocket model has 64 input directions, most of them soon protected

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init != "kaiming":
            raise ConfigError(f"keep_lora.init is {self.init!r}, but no branch starts from a draw; leave it out.")

    @property
    def calibration_share(self) -> float:
        return self.sample_share

    def build(self, *, seed: int) -> KeepLora:
        from components.methods.keep_lora import KeepLora

        return KeepLora(self, seed=seed)
