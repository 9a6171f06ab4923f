"""Pictures of batches, as tests that write the arithmetic out need them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from components.data.batch import Batch, Picture
from components.models.backbone import Backbone
from components.models.families.base import FEATURES, joined


def pixels_of(batch: Batch) -> Tensor | None:
    """[N, 3, H, W], or None without a picture."""
    pictures = batch.flat_pictures
    return joined(pictures)["pixel_values"] if pictures else None


def features_of(backbone: Backbone, batch: Batch) -> Tensor:
    """[N, V, C] of pictures that take equally many tokens."""
    return torch.stack(backbone.picture_features(batch.flat_pictures))


def cached(features: Tensor) -> Picture:
    """A picture with features [V, C]."""
    return Picture(tensors={FEATURES: features}, num_tokens=len(features))


def with_features(batch: Batch, features: Iterable[Tensor]) -> Batch:
    """The batch with features in the place of its pictures' pixels."""
    left = iter(features)
    return replace(batch, pictures=[tuple(cached(next(left)) for _ in row) for row in batch.pictures])
