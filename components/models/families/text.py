"""Language models without pictures, as in TRACE: Llama, Mistral, Qwen2, Qwen3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.models.families.base import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Text(Family):
    """A decoder and its output layer."""

    auto_class = "AutoModelForCausalLM"
    language_model = "model"
    towers = ()
    max_pictures = 0

    @property
    def placeholder(self) -> None:
        return None

    @property
    def image_token_id(self) -> int:
        return -1

    def embed(self, model: PreTrainedModel, features: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        assert not features, "a text model was given pictures"
        first = next(model.parameters())  # asking a module for its weight would gather it under ZeRO-3
        return torch.zeros(0, self.picture_width, dtype=first.dtype, device=first.device), {}
