"""Mistral Small 3.1 and later: the Pixtral tower takes pictures of any shape; a line of tokens ends in a mark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from PIL import Image
from torch import Tensor

from components.models.families.base import Family, Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Mistral3(Family):
    """Features are embeddings of the merged patches; the marks between lines are ordinary tokens."""

    template = "mistral"  # the model's own opens with a system turn that names the day

    def picture(self, image: Image.Image) -> tuple[Layout, dict[str, Tensor]]:
        patch = self.config.vision_config.patch_size * self.config.spatial_merge_size
        made = self.pixels(image, patch_size=patch)
        height, width = made["image_sizes"][0].tolist()
        lines, columns = height // patch, width // patch
        text = f"{self.placeholder}[IMG_BREAK]" * (lines - 1) + f"{self.placeholder}[IMG_END]"
        # Flat, because pictures of different shapes could not be joined.
        tensors = {"pixel_values": made["pixel_values"].flatten(), "image_sizes": made["image_sizes"]}
        return Layout(text, (columns,) * lines), tensors

    def features(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Sequence[Tensor]:
        # One by one: together the tower would attend from each picture to all, only to mask that.
        sizes = tensors["image_sizes"]
        flat = tensors["pixel_values"].split((3 * sizes.prod(dim=-1)).tolist())
        found: list[Tensor] = []
        for pixels, size in zip(flat, sizes.split(1), strict=True):
            height, width = size[0].tolist()
            pixels = pixels.view(1, 3, height, width)
            found += cast(Any, model).get_image_features(pixels, size, return_dict=True).pooler_output
        return found
