"""What a model sees: encoded examples, padded into a batch. Plain torch; no tokenizer, no Ray.

Shape letters: B batch, T tokens, N pictures, V tokens of one picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100  # label of a position without loss (torch's ignore_index)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture as a model takes it: tensors by name, either for its tower or the tower's features (`features`).

    Tensors of several pictures are joined along their first dimension.
    """

    tensors: dict[str, Tensor]
    num_tokens: int  # V: positions that it takes in its row

    def to(self, device: torch.device) -> Picture:
        """The same picture on `device`."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()}
        return replace(self, tensors=moved)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One encoded sample."""

    sample_id: str
    instruction: str  # first human turn without placeholder
    input_ids: Tensor  # [T] int64, the image token repeated V times where a picture goes
    labels: Tensor  # [T] int64, IGNORE outside answers; all IGNORE for a prompt to be answered
    weights: Tensor | None = None  # [T] float32, of the loss at each label; None: all 1
    pictures: tuple[Picture, ...] = ()  # in the order of their places


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples padded to one length, and the pictures of each."""

    sample_ids: list[str]
    instructions: list[str]
    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor  # [B, T] int64
    labels: Tensor  # [B, T] int64
    weights: Tensor | None = None  # [B, T] float32, of the loss at each label; None: all 1
    pictures: Sequence[tuple[Picture, ...]] = ()  # of each row; when left out, no row has one
    known_places: Tensor | None = None  # what `predicting` gives, where `collate` has found it
    oracle_task: str | None = None  # set only by oracle-routing evaluation: the task all rows belong to

    def __post_init__(self) -> None:
        if not self.pictures:
            object.__setattr__(self, "pictures", [()] * len(self))

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def predicting(self) -> Tensor:
        """Places [S] in the flattened [B, T] whose next token has a label, in order.

        How many there are decides the shapes of a forward pass. Found on a GPU, the host would have to wait for it.
        """
        if self.known_places is not None:
            return self.known_places
        rows, places = (self.labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        return rows * self.labels.shape[1] + places

    @property
    def flat_pictures(self) -> list[Picture]:
        """All N pictures, row by row."""
        return [picture for row in self.pictures for picture in row]

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        moved = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        pictures = [tuple(picture.to(device) for picture in row) for row in self.pictures]
        return replace(self, **moved, pictures=pictures)

    def tensors(self) -> Iterator[Tensor]:
        """All its tensors, those of its pictures included."""
        yield from (value for value in vars(self).values() if isinstance(value, Tensor))
        yield from (tensor for picture in self.flat_pictures for tensor in picture.tensors.values())

    def pinned(self) -> Batch:
        """The same batch in memory that a GPU can copy from by itself."""
        moved = {name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, Tensor)}
        pictures = [
            tuple(replace(each, tensors={name: of.pin_memory() for name, of in each.tensors.items()}) for each in row)
            for row in self.pictures
        ]
        return replace(self, **moved, pictures=pictures)

    def singles(self) -> Iterator[Batch]:
        """Every sample as a separate batch, padding included."""
        for index in range(len(self)):
            row = slice(index, index + 1)
            yield replace(
                self,
                sample_ids=self.sample_ids[row],
                instructions=self.instructions[row],
                input_ids=self.input_ids[row],
                attention_mask=self.attention_mask[row],
                labels=self.labels[row],
                weights=None if self.weights is None else self.weights[row],
                pictures=self.pictures[row],
                known_places=None,
            )


def collate(examples: Sequence[Example], *, pad_id: int, padding_side: str) -> Batch:
    """Pad `examples` on "right" (training) or "left" (generation) and keep their pictures.

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
    batch = Batch(
        sample_ids=[example.sample_id for example in examples],
        instructions=[example.instruction for example in examples],
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        weights=weights,
        pictures=[example.pictures for example in examples],
    )
    return replace(batch, known_places=batch.predicting)


class Limits(NamedTuple):
    """What one pass may read, though always one row."""

    rows: int
    tokens: int | None = None  # of all rows with their padding; None: any number


def batch_slices(lengths: Sequence[int], *, batch_size: int, batch_tokens: int | None) -> Iterator[slice]:
    """Parts of rows with falling `lengths`, each with as many rows as both limits allow, and at least one."""
    start = 0
    while start < len(lengths):
        fitting = batch_size if batch_tokens is None else max(1, batch_tokens // lengths[start])
        stop = min(start + min(batch_size, fitting), len(lengths))
        yield slice(start, stop)
        start = stop
