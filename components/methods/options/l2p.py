"""Options of method l2p. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from components.core.errors import ConfigError
from components.core.options import Count, NonNegative
from components.methods.options.base import MethodConfig

if TYPE_CHECKING:
    from components.methods.l2p import L2P


@dataclass(frozen=True, kw_only=True)
class L2PConfig(MethodConfig):
    """A pool of soft prompts shared by all tasks; those with the nearest keys are put in front of the input.

    The first four options have the paper's values for Split CIFAR-100.
    """

    name: ClassVar[str] = "l2p"
    is_task_free: ClassVar[bool] = True  # one pool, and prompts are found by the instruction; but see `bound_by`
    starts_as_backbone: ClassVar[bool] = False  # prompts draw attention, whatever their values
    default_learning_rate: ClassVar[float] = 1e-1  # prompts count in units of the model's embeddings

    pool_size: Count = 10
    """Prompts in the pool."""
    prompt_length: Count = 5
    """Tokens of a prompt; 10 in the released configuration."""
    top_k: Count = 5
    """Prompts that serve a sample; 4 in the released configuration."""
    pull: NonNegative = 0.5
    """Lambda, the weight of the keys' distance; 1.0 in the released configuration."""
    selection: Literal["instance", "batch"] = "instance"
    """How prompts are chosen in training: per instance, the paper's, or by a batch's majority, as released."""
    diversify: bool = False
    """Whether training holds back prompts that earlier tasks chose often."""
    prompt_start: Literal["words", "uniform"] = "words"
    """How prompts start: as embeddings of random tokens, or U(0, 0.01) as released."""
    sentence_encoder: str = "minilm"
    """What embeds instructions into queries."""

    @classmethod
    def tiny(cls) -> Self:
        # pocket averages over the sequence: only a long prompt weighs more than the text
        return cls(sentence_encoder="hash", prompt_length=40)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k > self.pool_size:
            raise ConfigError(f"l2p.top_k is {self.top_k}; give 1 to {self.pool_size} (l2p.pool_size).")

    def slot_name(self, slot: int, tasks: Sequence[str]) -> str:
        return f"prompt {slot}"

    @property
    def bound_by(self) -> str:
        return "diversify" if self.diversify else ""  # it weighs what earlier tasks chose

    @property
    def result_depends_on(self) -> tuple[str, ...]:
        voting = ("cluster.num_workers", "training.micro_batch_size") if self.selection == "batch" else ()
        return voting or (("cluster.num_workers",) if self.diversify else ())  # choices are counted per worker

    def build(self, *, seed: int) -> L2P:
        from components.methods.l2p import L2P

        return L2P(self, seed=seed)
