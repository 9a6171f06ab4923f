"""A set of weights added to the backbone's: a complete model directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.adapters.low_rank import Factors
from components.exporting.served import Served, logits_of
from components.models.config import BackboneConfig
from components.models.quiet import without_progress_bars
from components.models.source import ModelSource, model_source

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone


def write_merged(folder: Path, served: Served, config: BackboneConfig) -> None:
    """Write the model of `config` with `served` in its weights, in its precision, and its processor's files."""
    source = model_source(config)
    model = source.model()
    with torch.no_grad():
        for name, increments in served.layers.items():
            weight = model.get_parameter(f"{name}.weight")
            total = weight.float()
            for each in increments:
                total = total + (each.dense() if isinstance(each, Factors) else each)
            weight.copy_(total)
        for name, tensor in served.projector.items():
            model.get_parameter(name).copy_(tensor)
    with without_progress_bars():
        model.save_pretrained(folder)
    source.save_processor(folder)


def merged_logits(model: Backbone, folder: Path, batch: Batch) -> Tensor:
    """Predictions [S, vocabulary] float32 of the model in `folder`, which takes the place of that in `model`."""
    model.model = ModelSource(replace(model.config, name=str(folder))).model()
    return logits_of(model, batch)
