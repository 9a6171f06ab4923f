"""SmolVLM and Idefics3: a picture is cut into tiles, each announced by its row and column, then a small whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor

from components.models.families.base import Family, Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AROUND = "<fake_token_around_image>"


class SmolVLM(Family):
    """Features are embeddings, the same number for each tile."""

    language_model = "model.text_model"
    towers = ("model.vision_model", "model.connector")

    def picture(self, image: Image.Image) -> tuple[Layout, dict[str, Tensor]]:
        made = self.processed(image, return_row_col_info=True)
        rows, columns = made["rows"][0][0], made["cols"][0][0]
        vision = self.config.vision_config
        tokens = (vision.image_size // vision.patch_size) ** 2 // self.config.scale_factor**2
        tiles = rows * columns + 1
        # Tiles are padded to those of other pictures only, so the mask of a lone one says nothing (2 MB a tile).
        assert bool(made["pixel_attention_mask"].all())
        tensors = {"pixel_values": made["pixel_values"][0], "num_tiles": torch.tensor([tiles])}
        return Layout(announced(rows, columns), (tokens,) * tiles), tensors

    def features(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Sequence[Tensor]:
        # The model drops tiles of zeros as padding. All pictures' tiles are given as those of one row: there is none.
        made = cast(Any, model).get_image_features(tensors["pixel_values"].unsqueeze(0), return_dict=True)
        tiles = tensors["num_tiles"]
        (flat,) = made.pooler_output
        return flat.split((tiles * (len(flat) // int(tiles.sum()))).tolist())


def announced(rows: int, columns: int) -> str:
    """What stands for a picture of this many rows and columns of tiles, each tile's tokens written once."""
    whole = f"{AROUND}<global-img><image>{AROUND}"
    lines = (
        "".join(f"{AROUND}<row_{row}_col_{column}><image>" for column in range(1, columns + 1)) + "\n"
        for row in range(1, rows + 1)
    )
    return f"{''.join(lines)}\n{whole}" if rows else whole
