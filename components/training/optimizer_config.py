"""AdamW's options and schedule. Light on purpose (no torch): configurations import it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from components.core.options import NonNegative, Positive, Share, ShareBelowOne, check_options


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to zero; one schedule per task."""

    learning_rate: Positive | None = None
    """Peak rate; None takes the method's own default, since methods scale their increments differently."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay on all that trains."""
    beta1: ShareBelowOne = 0.9
    """AdamW's decay of the mean of gradients."""
    beta2: ShareBelowOne = 0.999
    """AdamW's decay of the mean of squared gradients."""
    epsilon: Positive = 1e-8
    """AdamW's term beside the root of squared gradients."""
    warmup_ratio: Share = 0.03
    """Share of a task's updates over which the rate rises to its peak."""
    max_grad_norm: NonNegative = 1.0
    """Largest norm of the gradient over all that trains; 0 switches clipping off."""

    def __post_init__(self) -> None:
        check_options(self, "training.optimizer")

    def rate_at(self, update: int, num_updates: int) -> float:
        """Learning rate of 0-based `update`; the peak must have been resolved (see `RunConfig.optimizer`)."""
        assert self.learning_rate is not None
        warmup = math.ceil(self.warmup_ratio * num_updates)
        if update < warmup:
            return self.learning_rate * (update + 1) / warmup
        progress = (update - warmup) / max(1, num_updates - warmup)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
