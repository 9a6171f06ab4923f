"""Options of method continual_llava. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from components.adapters.options import ContextRange
from components.core.errors import ConfigError
from components.core.options import Count, CountOrZero, Json, NonNegative, Positive
from components.methods.common.pool_options import Alignment, PoolOptions, SelectionRule, Weighting
from components.methods.options.base import MethodConfig

if TYPE_CHECKING:
    from components.methods.continual_llava import ContinualLlava


@dataclass(frozen=True, kw_only=True)
class ContinualLlavaConfig(MethodConfig):
    """Low-rank slots per task, chosen by instruction similarity, plus a learned sum of what earlier tasks chose.

    Where the paper and traces of the authors' code disagree or are silent, each reading is an option.
    """

    name: ClassVar[str] = "continual_llava"
    is_routed: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 5e-4  # factors start at N(0, 1), forty times LoRA's usual size

    slots_per_task: Count = 8
    """Slots that a task owns in an owned pool."""
    rank: Count = 8
    """Rank of one slot's increment."""
    top_m: Count = 4
    """Slots that serve one sample, those with the nearest keys."""
    targets: str = "o_proj"
    """Which layers are adapted: o_proj (the paper's), all_linear or a pattern below the language model."""
    increment_init: Literal["paper", "lora"] = "paper"
    """How down is drawn: N(0, 1), as the paper, or LoRA's usual draw; up starts at 0 in both."""
    pool: Literal["owned", "shared"] = "owned"
    """Whether each task owns its slots, or all tasks train the same ones."""
    pool_size: Count = 32
    """Slots of a shared pool; an owned pool grows by slots_per_task."""
    components: Literal["both", "intrinsic", "contextual"] = "both"
    """Which increments there are; contextual leaves the intrinsic ones out of evaluation only."""
    sentence_encoder: str = "minilm"
    """What embeds instructions; the paper's is sentence-transformers/nli-roberta-base-v2."""

    key_groups: Count = 4
    """Slices of a key whose cosines are averaged: 4 in traces of the authors' code, 1 in the paper."""
    selection: SelectionRule = "instance"
    """Whether slots are chosen per instance or per batch while a task is trained; evaluation chooses per instance."""
    weighting: Weighting = "ratio"
    """How cosines become weights: their share of the sum (the paper), or a softmax."""
    temperature: Positive = 0.1
    """Temperature of weighting softmax."""

    contextual: Literal["learned", "constant", "zero"] = "learned"
    """Whether the scalars w of earlier tasks are learned, stay at their start, or are 0 (two controls)."""
    contextual_learning_rate: Positive | None = 0.05
    """Peak rate of the raw values of w; None takes the run's, with which w hardly moves in a few hundred updates."""
    contextual_range: ContextRange = "sigmoid"
    """How w is kept in [0, 1]: as a sigmoid, or clamped (then the rate is that of w itself: take about 0.005)."""
    contextual_start: Literal["even", "small"] = "even"
    """Where w starts: 1 / number of earlier tasks (0.95 for one, the most a sigmoid starts at here), or 0.05."""

    alignment_learning_rate: Positive = 1e-3
    """Stage 1: AdamW's rate for the keys."""
    alignment_weight_decay: NonNegative = 0.01
    """Stage 1: AdamW's weight decay."""
    alignment_epochs: Count = 3
    """Stage 1: passes over the task's instructions."""
    alignment_decay: Positive = 0.1
    """Stage 1: factor of the rate after each epoch."""
    alignment_clip: Positive = 0.1
    """Stage 1: largest norm of a gradient."""
    alignment_batch_size: Count = 128
    """Stage 1: instructions in a batch."""
    alignment_samples: Count = 20_000
    """Stage 1: at most so many instructions per task, evenly spaced."""
    alignment_min_updates: CountOrZero = 480
    """Stage 1: at least so many updates, what 20,000 instructions get; 0 takes the literal number of epochs."""

    @classmethod
    def older(cls, options: Mapping[str, Json]) -> dict[str, Json]:
        return {"contextual_learning_rate": None, **options}

    @classmethod
    def tiny(cls) -> Self:
        return cls(sentence_encoder="hash", alignment_min_updates=60)

    def __post_init__(self) -> None:
        super().__post_init__()
        competing = self.slots_per_task if self.pool == "owned" else self.pool_size
        if self.top_m > competing:
            raise ConfigError(
                f"continual_llava.top_m is {self.top_m}; give 1 to {competing} (the slots that compete in a task)."
            )
        if self.components == "contextual" and self.contextual == "zero":
            raise ConfigError(
                "continual_llava.components is 'contextual' and contextual 'zero', which leaves nothing to evaluate; "
                "change one of them."
            )

    @property
    def adds_context(self) -> bool:
        """Whether earlier tasks add anything to a later one's increments."""
        return self.components != "intrinsic" and self.contextual != "zero"

    @property
    def pool_options(self) -> PoolOptions:
        """Those of the options that routing needs."""
        alignment = Alignment(
            learning_rate=self.alignment_learning_rate,
            weight_decay=self.alignment_weight_decay,
            epochs=self.alignment_epochs,
            decay=self.alignment_decay,
            clip=self.alignment_clip,
            batch_size=self.alignment_batch_size,
            min_updates=self.alignment_min_updates,
        )
        return PoolOptions(
            owned=self.pool == "owned",
            group_size=self.slots_per_task if self.pool == "owned" else self.pool_size,
            key_groups=self.key_groups,
            top_m=self.top_m,
            selection=self.selection,
            weighting=self.weighting,
            temperature=self.temperature,
            alignment=alignment,
        )

    def slot_name(self, slot: int, tasks: Sequence[str]) -> str:
        task, number = divmod(slot, self.slots_per_task)
        return f"{tasks[task]} {number + 1}" if self.pool == "owned" and task < len(tasks) else f"slot {slot}"

    def build(self, *, seed: int) -> ContinualLlava:
        from components.methods.continual_llava import ContinualLlava

        return ContinualLlava(self, seed=seed)
