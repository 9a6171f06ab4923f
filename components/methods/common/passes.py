"""Passes over a task's samples outside training, for methods that collect statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from components.adapters.low_rank import Bank
from components.adapters.projected import InputGrams
from components.methods.base import Method

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone


def first_samples(batches: Iterable[Batch], samples: int) -> Iterator[Batch]:
    """Whole batches until `samples` samples have been yielded; 0 takes all. It reads no batch beyond them."""
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch)
        if samples and seen >= samples:
            return


@torch.no_grad()
def input_grams(method: Method, model: Backbone, bank: Bank, batches: Iterable[Batch]) -> InputGrams:
    """Gram matrices of the inputs of `bank`'s layers while `method` serves `batches`, without padding."""
    grams, was_training = InputGrams(bank.layers), model.training
    model.eval()
    for batch in batches:
        with method.select(model, batch), grams.recording(batch.attention_mask):
            model(batch)
    model.train(was_training)
    return grams


@contextmanager
def without_dropout(model: Backbone, bank: Bank) -> Iterator[None]:
    """A scope for forward and backward passes without dropout in `bank`; gradient checkpointing stays as it is."""
    was_training = model.training
    model.train(model.config.gradient_checkpointing)  # which works in training mode only
    for layer in bank.layers.values():
        layer.groups.eval()
    try:
        yield
    finally:
        model.train(was_training)
