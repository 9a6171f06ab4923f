"""LLaVA-1.5 and what has its shape: a tower whose hidden states a two-layer projector maps, one by one, to embeddings.

The tower may be CLIP or SigLIP, the language model any decoder (LLaVA-1.5: Llama; LLaVA-interleave: Qwen2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor

from components.models.families.base import Family, Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Llava(Family):
    """Features are the tower's, before the projector, so that methods may train the projector."""

    projector = "model.multi_modal_projector"

    def picture(self, image: Image.Image) -> tuple[Layout, dict[str, Tensor]]:
        if self.options.pad_to_square:
            mean = getattr(self.files.image_processor, "image_mean", None) or [0.5, 0.5, 0.5]
            image = squared(image, (int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255)))
        pixels = self.pixels(image)["pixel_values"].float()
        assert self.placeholder is not None
        return Layout(self.placeholder, (self._num_tokens(pixels),)), {"pixel_values": pixels}

    def _num_tokens(self, pixels: Tensor) -> int:
        """V: the patches, with a class token where the tower has one and LLaVA keeps it."""
        patch = getattr(self.config.vision_config, "patch_size", None)
        if patch is None:  # a tower of another kind says how many tokens it gives
            return cast(int, self.config.image_seq_length)
        has_class = "clip_vision" in self.config.vision_config.model_type  # SigLIP has none
        dropped = self.config.vision_feature_select_strategy == "default"
        return (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch) + int(has_class) - int(dropped)

    @property
    def picture_width(self) -> int:
        layers = self.config.vision_feature_layer
        return self.config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))

    def features(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Sequence[Tensor]:
        tower = cast(Any, model).model.vision_tower
        states = tower(tensors["pixel_values"], output_hidden_states=True).hidden_states
        layers = self.config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        # "default" drops the first token, as LLaVA does with CLIP's class token.
        first = 1 if self.config.vision_feature_select_strategy == "default" else 0
        return torch.cat([states[layer][:, first:] for layer in layers], dim=-1).unbind()

    def embed(self, model: PreTrainedModel, features: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        # Without a picture the projector still runs, on no rows: under ZeRO all workers must gather it in each pass,
        # and the gradient of a trained projector must be zero, not missing.
        stacked = torch.stack([*features]) if features else self._none(model)
        return cast(Any, model).model.multi_modal_projector(stacked).flatten(0, 1), {}

    def _none(self, model: PreTrainedModel) -> Tensor:
        # Asking a module for its weight would gather it under ZeRO-3, on the workers without a picture only.
        first = next(model.parameters())
        return torch.zeros(0, 1, self.picture_width, dtype=first.dtype, device=first.device)


def squared(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The picture in the middle of a square of this colour, as LLaVA-1.5 pads it."""
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
