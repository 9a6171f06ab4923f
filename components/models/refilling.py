"""Greedy answers of more rows than are answered at once: where replies have ended, the next prompts take their places.

Worth it where replies are long and of many lengths: a batch goes on with ever fewer rows until its longest one ends.

Shape letters: B all rows, b rows that are there, W positions that are kept of them, T tokens of new prompts, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from components.adapters.present import Leaving, Part, leaving
from components.data.batch import Batch, Limits
from components.models.decoding import PART, before_end, last_of, last_position

if TYPE_CHECKING:
    from components.models.backbone import Backbone


@dataclass(kw_only=True)
class Going:
    """Rows whose replies go on."""

    rows: Tensor  # [b] int64, of the batch
    mask: Tensor  # [b, W]
    position: Tensor  # [b, 1] or [3, b, 1], of the newest token that was read
    cache: DynamicCache
    last: Tensor  # [b, 1, D] behind it
    token: Tensor = field(default_factory=lambda: torch.empty(0))  # [b] int64, the newest, not yet read

    def keep(self, places: Tensor) -> None:
        """Only these places [k] int64 stay, and of the positions those that one of them has."""
        self.rows, self.mask, self.last = self.rows[places], self.mask[places], self.last[places]
        self.token = self.token[places]
        self.position = self.position.index_select(-2, places)
        self.cache.batch_select_indices(places)
        if joins(self.cache):
            free = int(self.mask.any(dim=0).int().argmax())
            self.mask = self.mask[:, free:]
            for layer in cast("list[DynamicLayer]", self.cache.layers):
                layer.keys, layer.values = layer.keys[:, :, free:], layer.values[:, :, free:]  # type: ignore[index]

    def join(self, new: Going) -> None:
        """Add other rows, whose cache is emptied."""
        width = max(self.mask.shape[1], new.mask.shape[1])
        pads = [width - one.mask.shape[1] for one in (self, new)]
        self.mask = torch.cat([F.pad(one.mask, (by, 0)) for one, by in zip((self, new), pads, strict=True)])
        self.rows, self.last = torch.cat([self.rows, new.rows]), torch.cat([self.last, new.last])
        self.token = torch.cat([self.token, new.token])
        self.position = torch.cat([self.position, new.position], dim=-2)
        layers = zip(self.cache.layers, new.cache.layers, strict=True)
        for mine, other in cast("list[tuple[DynamicLayer, DynamicLayer]]", [*layers]):
            for name in ("keys", "values"):
                states = (getattr(mine, name), getattr(other, name))
                padded = [F.pad(each, (0, 0, by, 0)) for each, by in zip(states, pads, strict=True)]
                setattr(mine, name, torch.cat(padded))
            other.reset()


@torch.no_grad()
def refilled(model: Backbone, batch: Batch, *, max_new_tokens: int, limits: Limits) -> list[list[int]]:
    """As `decoding.greedy`, with at most so many rows and tokens at once; called in evaluation mode.

    All adapters must read what they hold of each row by `present`. New prompts are read when a quarter of the places is
    free, in the order of the batch. A model that does not keep all positions (sliding windows) is answered in batches.
    """
    answers: list[list[int]] = [[] for _ in range(len(batch))]
    lengths, before = batch.attention_mask.sum(dim=1).tolist(), 0 if model.prefix is None else model.prefix.shape[1]
    sizes = [before + length for length in lengths]
    joining, first = joins(_new_cache(model)), 0
    going: Going | None = None
    with leaving(len(batch), batch.input_ids.device) as there:
        while first < len(batch) or going is not None:
            if going is not None:
                step(model, going, there)
                going = _said(model, going, answers, max_new_tokens)
            free = limits.rows - (0 if going is None else len(going.rows))
            while going is None or (joining and free >= max(1, limits.rows // 4)):
                part = PART if joining and not batch.input_ids.is_cuda else None
                count = _fitting(sizes[first:], going, max_new_tokens, limits, part)
                if not count:
                    break
                new = _said(model, _read(model, batch, slice(first, first + count), there), answers, max_new_tokens)
                first += count
                if going is not None and new is not None:
                    going.join(new)
                going = going or new
    ends = model.end_ids()
    return [before_end(row, ends) for row in answers]


def _fitting(sizes: Sequence[int], going: Going | None, max_new_tokens: int, limits: Limits, part: int | None) -> int:
    """How many of the next rows, whose prompts have these sizes, are read in one pass; at least one where none goes on.

    `part`: about so many tokens, padding counted.
    """
    there, widest = (0, 0) if going is None else going.mask.shape
    longest, count = 0, 0
    for size in sizes:
        longest, rows = max(longest, size), there + count + 1
        if rows > limits.rows:
            break
        taken = rows * (max(longest, widest) + max_new_tokens)
        if rows > 1 and limits.tokens is not None and taken > limits.tokens:
            break
        if count and part is not None and longest * (count + 1) > part:
            break
        count += 1
    return count


def _read(model: Backbone, batch: Batch, rows: slice, there: Leaving) -> Going:
    """Prompts, without the padding that all of them have."""
    padding = batch.input_ids.shape[1] - int(batch.attention_mask[rows].sum(dim=1).max())
    some = replace(
        batch,
        sample_ids=batch.sample_ids[rows],
        instructions=batch.instructions[rows],
        input_ids=batch.input_ids[rows, padding:],
        attention_mask=batch.attention_mask[rows, padding:],
        labels=batch.labels[rows, padding:],
        pictures=batch.pictures[rows],
        weights=None,
        known_places=None,
    )
    cache = _new_cache(model)
    with there.only(Part(rows, padding)):
        inputs = model.inputs(some)
        call = model.family.call(model.model, inputs)
        last = last_of(model.decode(inputs.embeddings, call, use_cache=True, past_key_values=cache))
        return Going(rows=there.rows, mask=inputs.mask, position=last_position(call), cache=cache, last=last)


def step(model: Backbone, going: Going, there: Leaving) -> None:
    """Read the newest tokens."""
    going.position = going.position + 1
    going.mask = torch.cat([going.mask, going.mask.new_ones(len(going.mask), 1)], dim=1)
    there.now(going.rows)
    embeddings = model.language_model.get_input_embeddings()(going.token.unsqueeze(1))
    call = {"attention_mask": going.mask, "position_ids": going.position}
    going.last = last_of(model.decode(embeddings, call, use_cache=True, past_key_values=going.cache))


def _said(model: Backbone, going: Going, answers: list[list[int]], max_new_tokens: int) -> Going | None:
    """With one more token in the `answers` of its rows; None where all of these have ended."""
    ends = model.end_ids()
    going.token = model.family.logits(model.model, going.last)[:, -1].argmax(dim=-1)
    stay: list[int] = []
    for place, (row, token) in enumerate(zip(going.rows.tolist(), going.token.tolist(), strict=True)):
        answers[row].append(token)
        if token not in ends and len(answers[row]) < max_new_tokens:
            stay.append(place)
    if len(stay) < len(going.rows) and stay:
        going.keep(torch.tensor(stay, device=going.rows.device))
    return going if stay else None


def _new_cache(model: Backbone) -> DynamicCache:
    return DynamicCache(config=model.family.config.get_text_config(decoder=True))


def joins(cache: DynamicCache) -> bool:
    """Whether all layers keep all positions."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)
