"""Qwen2-VL and Qwen2.5-VL: pictures of any size in patches, and positions in three directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor

from components.models.families.base import Family, Layout, ModelInputs, joined

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Qwen25VL(Family):
    """The tower ends in a merger, whose outputs are embeddings already."""

    towers = ("model.visual",)
    kept = ("image_grid_thw",)

    def picture(self, image: Image.Image) -> tuple[Layout, dict[str, Tensor]]:
        tensors = self.pixels(image)
        merged = self.config.vision_config.spatial_merge_size**2
        assert self.placeholder is not None
        return Layout(self.placeholder, (int(tensors["image_grid_thw"].prod()) // merged,)), tensors

    def call(self, model: PreTrainedModel, inputs: ModelInputs) -> dict[str, Any]:
        return {"attention_mask": inputs.mask, "position_ids": self.positions(model, inputs)}

    def positions(self, model: PreTrainedModel, inputs: ModelInputs) -> Tensor:
        """[3, B, P + T]: time, height and width. A prefix comes first in all three; padding has position 0."""
        plain = inputs.positions.expand(3, -1, -1)
        pictures = inputs.batch.flat_pictures
        if not pictures:
            return plain
        grids = joined(pictures)["image_grid_thw"]
        mask = inputs.batch.attention_mask
        text, _ = cast(Any, model).model.get_rope_index(
            inputs.batch.input_ids, inputs.image_mask.int(), image_grid_thw=grids, attention_mask=mask
        )
        shifted = (text + inputs.prefix) * mask
        return torch.cat([plain[..., : inputs.prefix], shifted], dim=-1)
