"""LLaVA-NeXT and LLaVA-OneVision: the tower sees the whole picture and tiles of it, chosen by the picture's shape."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from components.models.families.base import Family, Layout


class LlavaNext(Family):
    """Features are embeddings: what is left of the tiles without their padding, with a mark at the end of each line."""

    def picture(self, image: Image.Image) -> tuple[Layout, dict[str, Tensor]]:
        made = self.pixels(image, do_pad=True)
        tensors = {"pixel_values": made["pixel_values"][0], "image_sizes": made["image_sizes"]}
        assert self.placeholder is not None
        return Layout(self.placeholder, (self._num_tokens(image.height, image.width),)), tensors

    def _num_tokens(self, height: int, width: int) -> int:
        """V: the whole picture, and the lines of the tiles."""
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        lines, columns = self._grid(height, width, side)
        return side**2 + lines * (columns + 1)

    def _grid(self, height: int, width: int, side: int) -> tuple[int, int]:
        """Lines and columns of the tiles' tokens, for tiles of `side` x `side`; their padding is cut off."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

        size, tile = (height, width), self.config.vision_config.image_size
        down, across = get_anyres_image_grid_shape(size, self.config.image_grid_pinpoints, tile)
        _, lines, columns = unpad_image(torch.empty(1, down * side, across * side), size).shape
        return lines, columns


class LlavaOnevision(LlavaNext):
    """As LLaVA-NeXT, but tiles with too many tokens are shrunk.

    Rows have one picture: of several, its processor makes no tiles, which the layout of a picture could not know.
    """

    max_pictures = 1

    def _grid(self, height: int, width: int, side: int) -> tuple[int, int]:
        lines, columns = super()._grid(height, width, side)
        most = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = (lines * columns / (most * side**2)) ** 0.5
        return (int(lines // ratio), int(columns // ratio)) if ratio > 1.1 else (lines, columns)
