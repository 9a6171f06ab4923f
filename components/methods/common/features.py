"""Features of a sample before any adapter, for routing: its picture and its instruction, from frozen encoders.

Shape letters: B batch, N pictures, V visual tokens, C vision channels.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.methods.base import ConfigT, Method

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone
    from components.models.sentence import SentenceEncoder


class ReadsInstructions(Method[ConfigT]):
    """Base of methods whose options name a `sentence_encoder`."""

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The frozen encoder of instructions."""
        from components.models.sentence import load_sentence_encoder  # imports transformers

        return load_sentence_encoder(str(self.config.options()["sentence_encoder"]))


def has_picture(model: Backbone, batch: Batch) -> Tensor:
    """Which samples of the batch have a picture [B] bool."""
    return (batch.input_ids == model.image_token_id).any(dim=1)


def picture_features(model: Backbone, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean over visual tokens of the frozen tower's features [B, C] float32, zero without a picture; and `has_picture`.

    With a CLIP tower it takes the place of the papers' image embedding, without a text tower or a second encoder.
    """
    pictured = has_picture(model, batch)
    features = batch.features
    if features is None and batch.pixel_values is not None:
        features = model.vision_features(batch.pixel_values)
    if features is None:
        return torch.zeros(len(batch), model.vision_channels, device=pictured.device), pictured
    means = features.float().mean(dim=1)
    spread = means.new_zeros(len(batch), means.shape[1])
    spread[pictured.to(spread.device)] = means
    return spread, pictured
