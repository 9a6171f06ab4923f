"""PaliGemma and Gemma 3: a picture's tokens see each other, so attention is not causal everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from components.data.batch import IGNORE
from components.models.families.base import Family, Layout, ModelInputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PaliGemma(Family):
    """One question a row, about one or more pictures. Prompts are seen in both directions, answers are causal."""

    max_questions = 1
    template = "paligemma"

    def picture(self, image: Image.Image) -> tuple[Layout, dict[str, Tensor]]:
        tensors = self.pixels(image)
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        assert self.placeholder is not None
        return Layout(self.placeholder, (side**2,)), tensors

    def call(self, model: PreTrainedModel, inputs: ModelInputs) -> dict[str, Any]:
        answered = (inputs.batch.labels != IGNORE).cumsum(dim=-1) > 0
        return masked(model, inputs, inputs.positions + 1, answered.long())

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        logits, cap = super().logits(model, hidden), getattr(self.config.text_config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


class Gemma3(Family):
    """The tokens of a picture see each other; everything else is causal."""

    @property
    def placeholder(self) -> str:
        return cast(str, self.files.tokenizer.convert_ids_to_tokens(self.config.boi_token_index))

    def picture(self, image: Image.Image) -> tuple[Layout, dict[str, Tensor]]:
        tensors = self.pixels(image, do_pan_and_scan=False)
        first, image_token, last = self.files.tokenizer.convert_ids_to_tokens(
            [self.config.boi_token_index, self.image_token_id, self.config.eoi_token_index]
        )
        layout = Layout(f"\n\n{first}{image_token}{last}\n\n", (self.config.mm_tokens_per_image,))
        return layout, {"pixel_values": tensors["pixel_values"]}

    def call(self, model: PreTrainedModel, inputs: ModelInputs) -> dict[str, Any]:
        return masked(model, inputs, inputs.positions, inputs.image_mask.long())


def masked(model: PreTrainedModel, inputs: ModelInputs, positions: Tensor, types: Tensor) -> dict[str, Any]:
    """The call with attention masks that the model's class makes of token types [B, T]; a prefix has type 0."""
    masks = cast(Any, type(model)).create_masks_for_generate(
        config=model.config,
        inputs_embeds=inputs.embeddings,
        attention_mask=inputs.mask,
        past_key_values=None,
        position_ids=positions,
        token_type_ids=F.pad(types, (inputs.prefix, 0)),
        is_first_iteration=True,
    )
    return {"attention_mask": masks, "position_ids": positions}
