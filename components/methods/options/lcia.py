"""Options of method lcia. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self, cast

from components.core.options import Count, Json, NonNegative, Positive, Share, ShareBelowOne
from components.methods.common import codebook_options as codebook
from components.methods.common.balance_options import Balance, Norm, Rule, Start
from components.methods.common.codebook_options import CodebookOptions
from components.methods.options.base import Export, MethodConfig

if TYPE_CHECKING:
    from components.methods.lcia import Lcia


@dataclass(frozen=True, kw_only=True)
class LciaConfig(MethodConfig):
    """Like instructions share an adapter, a gradient-balanced moving average; others get an adapter of their own.

    Where the paper and the released code differ, both are options and the code is the default.
    """

    name: ClassVar[str] = "lcia"
    export: ClassVar[Export] = "hard"
    is_routed: ClassVar[bool] = True

    rank: Count = 32
    """Rank of a group's adapter, as sequential_lora's; the code takes 128."""
    alpha: Positive = 64.0
    """The increment is scaled by alpha / rank: 2, as in the code."""
    dropout: ShareBelowOne = 0.0
    """Dropout before the adapter while it trains; the code takes 0.05."""
    targets: str = "o_proj"
    """Which layers are adapted: o_proj, all_linear (the code's) or a pattern below the language model."""

    balance: Rule = "official_code"
    """Which formula weighs old against new: the code's, the paper's, or the controls constant and frozen."""
    norm: Norm = "l1_sum"
    """How a tensor is measured: l1_sum as the code; l1_mean does not depend on its size, but see stability."""
    kappa: Positive = 2.0
    """Factor of official_code; the authors' later toolkit takes 0.01 with constant_weight 0.999."""
    stability: Positive = 1.0
    """Lambda of the formula; with l1_mean a value inside (0, 1) needs one of the gradients' own size."""
    step_difference: bool = True
    """Whether the paper's formula has its factor |theta - theta_before|; without it: 1."""
    constant_weight: Share = 0.99
    """Weight of the old tensor for balance constant, and wherever the formula leaves (0, 1)."""
    ema_start: Start = "after_first_step"
    """What an average starts from: a copy after the task's first step, as the code, or the task's start (the paper)."""

    threshold: NonNegative = 0.9
    """From this similarity on a group is reused; CoIN's Diverse and 10Type take 0.3; 0: one group; above 1: none."""
    aggregation: codebook.Aggregation = "mean"
    """How pairs of strings make a similarity: their mean, as the code, or each string's most similar one (max)."""
    instruction_field: codebook.Field = "last_line_to_colon"
    """What is compared of an instruction: its last line, cut at a colon as the code cuts grounding's, or the whole."""
    max_strings: Count = 500
    """Distinct strings compared and stored per task, evenly spaced; the code takes all."""
    new_group: Literal["parent", "fresh"] = "parent"
    """A new group starts from the newest trained one, as the scripts do, or anew, as a summary of the paper has it."""

    allocation: codebook.Allocation = "file"
    """At test: one group serves all rows of a test file, as the code, or each row is served by itself (instance)."""
    on_miss: codebook.OnMiss = "last"
    """Who serves what is below the threshold: the last opened group, as the code, or the best one all the same."""

    @classmethod
    def per_sample(cls) -> Self:
        """Not the released rule: each row goes to its most similar group, and averages start at the task's start."""
        return cls(instruction_field="last_line", allocation="instance", on_miss="best", ema_start="task_start")

    @property
    def balance_options(self) -> Balance:
        """Those of the options that the averages need."""
        return Balance(
            rule=self.balance,
            norm=self.norm,
            kappa=self.kappa,
            stability=self.stability,
            step_difference=self.step_difference,
            constant_weight=self.constant_weight,
            start=self.ema_start,
        )

    @property
    def codebook_options(self) -> CodebookOptions:
        """Those of the options that grouping needs."""
        return CodebookOptions(
            threshold=self.threshold,
            aggregation=self.aggregation,
            field=self.instruction_field,
            max_strings=self.max_strings,
            allocation=self.allocation,
            on_miss=self.on_miss,
        )

    def slot_name(self, slot: int, tasks: Sequence[str]) -> str:
        return f"group {slot}"

    def export_groups(self, structure: Mapping[str, Json]) -> dict[str, list[str]]:
        from components.methods.common.codebook import Codebook

        codebook = Codebook(self.codebook_options)
        codebook.restore(structure)
        return codebook.tasks_by_group(cast("list[str]", structure["tasks"]))

    def build(self, *, seed: int) -> Lcia:
        from components.methods.lcia import Lcia

        return Lcia(self, seed=seed)
