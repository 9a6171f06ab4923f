"""What a model sees: encoded examples, padded into a batch. Plain torch; no tokenizer, no Ray.

Shape letters: B batch, T tokens, V visual tokens per picture, C vision channels, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORE = -100  # label of a position without loss (torch's ignore_index)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One encoded sample. The picture is either pixels or the frozen tower's features, never both."""

    sample_id: str
    instruction: str  # first human turn without placeholder
    input_ids: Tensor  # [T] int64, the image token repeated V times where the picture goes
    labels: Tensor  # [T] int64, IGNORE outside answers; all IGNORE for a prompt to be answered
    weights: Tensor | None = None  # [T] float32, of the loss at each label; None: all 1
    pixel_values: Tensor | None = None  # [3, H, W] float32
    features: Tensor | None = None  # [V, C] vision features before the projector


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples padded to one length. `pixel_values`/`features` hold only the N rows that have a picture, in order."""

    sample_ids: list[str]
    instructions: list[str]
    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor  # [B, T] int64
    labels: Tensor  # [B, T] int64
    weights: Tensor | None = None  # [B, T] float32, of the loss at each label; None: all 1
    pixel_values: Tensor | None = None  # [N, 3, H, W]
    features: Tensor | None = None  # [N, V, C]
    oracle_task: str | None = None  # set only by oracle-routing evaluation: the task all rows belong to

    def __len__(self) -> int:
        return len(self.sample_ids)

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        moved = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def singles(self, image_token_id: int) -> Iterator[Batch]:
        """Every sample as a separate batch, padding included; its image tokens say whether it has a picture."""
        has_picture = (self.input_ids == image_token_id).any(dim=1).tolist()
        picture = 0
        for index, pictured in enumerate(has_picture):
            row = slice(index, index + 1)
            pictures = slice(picture, picture + 1)
            picture += pictured
            yield replace(
                self,
                sample_ids=self.sample_ids[row],
                instructions=self.instructions[row],
                input_ids=self.input_ids[row],
                attention_mask=self.attention_mask[row],
                labels=self.labels[row],
                weights=None if self.weights is None else self.weights[row],
                pixel_values=self.pixel_values[pictures] if pictured and self.pixel_values is not None else None,
                features=self.features[pictures] if pictured and self.features is not None else None,
            )


def collate(examples: Sequence[Example], *, pad_id: int, padding_side: str) -> Batch:
    """Pad `examples` on "right" (training) or "left" (generation) and stack their pictures.

    Labels and the attention mask are padded by position, never by id: pad may equal eos.
    """
    length = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), length), pad_id, dtype=torch.long)
    labels = torch.full((len(examples), length), IGNORE, dtype=torch.long)
    attention_mask = torch.zeros((len(examples), length), dtype=torch.long)
    weighted = any(example.weights is not None for example in examples)
    weights = torch.ones((len(examples), length)) if weighted else None
    for index, example in enumerate(examples):
        size = len(example.input_ids)
        place = slice(length - size, length) if padding_side == "left" else slice(0, size)
        input_ids[index, place] = example.input_ids
        labels[index, place] = example.labels
        attention_mask[index, place] = 1
        if weights is not None and example.weights is not None:
            weights[index, place] = example.weights
    pixels = [example.pixel_values for example in examples if example.pixel_values is not None]
    features = [example.features for example in examples if example.features is not None]
    assert not (pixels and features), "a batch holds pixels or cached features, not a mixture"
    return Batch(
        sample_ids=[example.sample_id for example in examples],
        instructions=[example.instruction for example in examples],
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        weights=weights,
        pixel_values=torch.stack(pixels) if pixels else None,
        features=torch.stack(features) if features else None,
    )
