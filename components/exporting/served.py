"""What a method puts into the place of the frozen weights, read from its own layers while they serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.adapters.low_rank import AdaptedLinear, Increment
from components.adapters.projectors import ProjectorBank
from components.core.errors import ExportError
from components.data.batch import Batch
from components.methods.base import Method

if TYPE_CHECKING:
    from components.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class Served:
    """One set of weights. Names are those in the model of transformers."""

    name: str  # of the group; "" if the method has one set for everything
    tasks: list[str]  # that it serves
    layers: Mapping[str, Sequence[Increment]]  # what is added to each layer's weight, as a sum
    projector: Mapping[str, Tensor]  # tensors that replace those of the projector; {}: none
    logits: Tensor  # [S, vocabulary] float32, of the probe


def logits_of(model: Backbone, batch: Batch) -> Tensor:
    """The model's predictions at the probe's answers [S, vocabulary] float32, as it is now."""
    model.eval()
    with torch.no_grad():
        return model(batch).logits.float()


def served_by(method: Method, model: Backbone, batch: Batch, name: str, tasks: list[str]) -> Served:
    """The weights that serve `tasks`, and what the model predicts with them on the probe `batch`."""
    told = replace(batch, oracle_task=tasks[0]) if tasks else batch
    with method.select(model, told):
        logits = logits_of(model, told)
        layers: dict[str, list[Increment]] = {}
        projector: dict[str, Tensor] = {}
        for module_name, module in model.model.named_modules():
            if isinstance(module, AdaptedLinear) and (increments := module.increments()):
                layers[module_name] = increments
            elif isinstance(module, ProjectorBank):
                projector |= {f"{module_name}.{key}": value for key, value in module.served().items()}
    if not layers and not projector:
        raise ExportError(f"{method.config.name} adds nothing to the backbone; there is nothing to export.")
    return Served(name=name, tasks=tasks or [*method.tasks], layers=layers, projector=projector, logits=logits)
