"""InternVL in transformers' own layout (`-hf`): a picture is cut into equal tiles, with a small whole of it behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from PIL import Image
from torch import Tensor

from components.models.families.base import Family, Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class InternVL(Family):
    """Features are embeddings, the same number for each tile."""

    def picture(self, image: Image.Image) -> tuple[Layout, dict[str, Tensor]]:
        # The processor of the type asks for tiles whatever the image processor's file says.
        tensors = self.pixels(image, crop_to_patches=True)
        tokens = int(tensors["num_patches"]) * self.config.image_seq_length
        return Layout(f"<img>{self.placeholder}</img>", (tokens,)), tensors

    def features(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Sequence[Tensor]:
        tiles = cast(Any, model).get_image_features(tensors["pixel_values"], return_dict=True).pooler_output
        return [picture.flatten(0, 1) for picture in tiles.split(tensors["num_patches"].tolist())]
