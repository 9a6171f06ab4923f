"""How slots are chosen, as options. Light on purpose (no torch): options import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Weighting = Literal["ratio", "softmax"]
SelectionRule = Literal["instance", "batch"]


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How keys are trained (stage 1). An epoch makes at least `min_updates / epochs` updates, however few the rows."""

    learning_rate: float
    weight_decay: float
    epochs: int
    decay: float  # the learning rate is multiplied by this after each epoch
    clip: float
    batch_size: int
    min_updates: int


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """The method's options that routing needs."""

    owned: bool
    group_size: int  # G: slots per task, or of the whole shared pool
    key_groups: int
    top_m: int
    selection: SelectionRule
    weighting: Weighting
    temperature: float
    alignment: Alignment
