"""A method on a fresh backbone, the same in every process that learns or answers."""

from __future__ import annotations

import torch

from components.data.instructions import Instructions
from components.methods.base import Method, MethodState
from components.models.backbone import Backbone
from components.training.plan import Plan


def attached(plan: Plan, model: Backbone, state: MethodState | None, device: torch.device) -> tuple[Backbone, Method]:
    """The model on `device` and on it the run's method, as new or as `state` left it."""
    config, model = plan.config, model.to(device)
    # The same start in every process, whatever has drawn numbers until now.
    torch.manual_seed(config.seed)
    method: Method = config.method.build(seed=config.seed)
    method.attach(model, state)
    model.to(device)  # again, for what the method has added
    method.prepare(Instructions([split for scheduled in plan.schedule for split in scheduled.splits]))
    return model, method
