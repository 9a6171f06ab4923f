"""Qwen3-VL: as Qwen2.5-VL, and features of earlier layers of the tower join the first layers of the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from components.models.families.base import ModelInputs
from components.models.families.qwen2_5_vl import Qwen25VL

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Qwen3VL(Qwen25VL):
    """A token's features are its embedding and, behind it, what joins each of the first layers."""

    @property
    def picture_width(self) -> int:
        return super().picture_width * (1 + len(self.config.vision_config.deepstack_visual_indexes))

    def features(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Sequence[Tensor]:
        made = cast(Any, model).get_image_features(**tensors, return_dict=True)
        by_picture = zip(made.pooler_output, *made.deepstack_features, strict=True)
        return [torch.cat(parts, dim=-1) for parts in by_picture]

    def embed(self, model: PreTrainedModel, features: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        joined, _ = super().embed(model, features)
        embeddings, *joining = joined.chunk(self.picture_width // super().picture_width, dim=-1)
        return embeddings, {"joining": torch.stack(joining)}

    def call(self, model: PreTrainedModel, inputs: ModelInputs) -> dict[str, Any]:
        places = F.pad(inputs.image_mask, (inputs.prefix, 0))
        joining = {"visual_pos_masks": places, "deepstack_visual_embeds": [*inputs.extra["joining"]]}
        return super().call(model, inputs) | joining
