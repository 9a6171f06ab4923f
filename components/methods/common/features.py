"""Features of a sample before any adapter, for routing: its picture and its instruction, from frozen encoders.

Shape letters: B batch, C channels of pictures' features.
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


def picture_features(model: Backbone, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean over the tokens of a sample's pictures of the frozen encoder's features [B, C] float32, zero without a
    picture; and which samples have one [B] bool.

    With a CLIP tower it takes the place of the papers' image embedding, without a text tower or a second encoder.
    """
    features = iter(model.picture_features(batch.flat_pictures))
    means = torch.zeros(len(batch), model.picture_width, device=model.device)
    for index, row in enumerate(batch.pictures):
        if row:
            means[index] = torch.cat([next(features) for _ in row]).float().mean(dim=0)
    return means, torch.tensor([bool(row) for row in batch.pictures], device=model.device)
