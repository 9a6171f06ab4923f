"""Greedy answers of a batch: prompts are read in parts that fit the processor's caches, replies are continued together.

A row leaves the batch when its reply has ended. Both need adapters that read what they hold of each row by `present`.

Shape letters: B batch, b rows that are still there, T tokens of a prompt, P prefix, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from components.adapters.present import Leaving, Part, leaving
from components.models.families.base import ModelInputs

if TYPE_CHECKING:
    from components.models.backbone import Backbone

PART = 512  # tokens of prompts that a CPU reads at once: with more, what an MLP holds leaves its caches
PLAIN_CALL = {"attention_mask", "position_ids"}


class Steering(Protocol):
    """Decides about replies while they are generated, for whoever wants other ones than the greedy replies in full."""

    def choose(self, logits: Tensor) -> Tensor:
        """The next token of each row [B] int64, for logits [B, vocabulary]."""
        ...

    def seen(self, tokens: Tensor, ended: Tensor) -> Tensor:
        """Told the rows' newest tokens [B] and which rows have ended [B] bool: those that need no more [B] bool."""
        ...


@torch.no_grad()
def greedy(
    model: Backbone, inputs: ModelInputs, *, max_new_tokens: int, rows_leave: bool, steering: Steering | None
) -> list[list[int]]:
    """The ids of each row before the first that ends an answer, at most `max_new_tokens`; called in evaluation mode.

    Greedy unless `steering` chooses the tokens.
    """
    ends = model.end_ids()
    stops = torch.tensor(ends, device=inputs.mask.device)
    call, mask = model.family.call(model.model, inputs), inputs.mask
    position = last_position(call)
    answers: list[list[int]] = [[] for _ in range(len(mask))]
    ended = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    with leaving(len(mask), mask.device) as there:
        last, cache = read(model, inputs, call, there, in_parts=rows_leave)
        for number in range(1, max_new_tokens + 1):
            logits = model.family.logits(model.model, last)[:, -1]
            token = logits.argmax(dim=-1) if steering is None else steering.choose(logits)
            token = token.masked_fill(ended, ends[0])
            for row, found in zip(there.rows.tolist(), token.tolist(), strict=True):
                answers[row].append(found)
            ended = ended | torch.isin(token, stops)
            if steering is not None:
                ended = ended | steering.seen(token, ended)
            if number == max_new_tokens or bool(ended.all()):
                break
            position = position + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            # What steers the replies knows all rows, so they stay.
            if rows_leave and steering is None and bool(ended.any()):
                stay = (~ended).nonzero().squeeze(1)
                there.keep(stay)
                cache.batch_select_indices(stay)
                token, mask, ended = token[stay], mask[stay], ended[stay]
                position = position.index_select(-2, stay)
            embeddings = model.language_model.get_input_embeddings()(token.unsqueeze(1))
            step = {"attention_mask": mask, "position_ids": position}
            last = last_of(model.decode(embeddings, step, use_cache=True, past_key_values=cache))
    return [before_end(row, ends) for row in answers]


def last_position(call: Mapping[str, Any]) -> Tensor:
    """[B, 1] or [3, B, 1]: the next token's position in every direction is one more than the largest so far."""
    position = call["position_ids"].amax(dim=-1, keepdim=True)
    return position.amax(dim=0, keepdim=True).expand_as(position) if position.dim() == 3 else position


def read(
    model: Backbone, inputs: ModelInputs, call: Mapping[str, Any], there: Leaving, *, in_parts: bool
) -> tuple[Tensor, DynamicCache]:
    """Hidden states [B, 1, D] at the end of the prompts, and what the decoder keeps of their P + T positions."""
    config = model.family.config.get_text_config(decoder=True)
    parts = _parts(inputs)
    plain = call.keys() == PLAIN_CALL and isinstance(call["attention_mask"], Tensor)
    caches = [DynamicCache(config=config)]
    if not (in_parts and plain and len(parts) > 1 and all(type(layer) is DynamicLayer for layer in caches[0].layers)):
        return last_of(model.decode(inputs.embeddings, call, use_cache=True, past_key_values=caches[0])), caches[0]
    caches += [DynamicCache(config=config) for _ in parts[1:]]
    found, before = list[Tensor](), inputs.prefix
    for part, cache in zip(parts, caches, strict=True):
        rows, columns = part.rows, [*range(before), *range(before + part.padding, inputs.mask.shape[1])]
        own = {
            "attention_mask": call["attention_mask"][rows][:, columns],
            "position_ids": call["position_ids"][..., rows, :][..., columns],
        }
        with there.only(part):
            embeddings = inputs.embeddings[rows][:, columns]
            found.append(last_of(model.decode(embeddings, own, use_cache=True, past_key_values=cache)))
    return torch.cat(found), _together(caches, [part.padding for part in parts], before)


def _parts(inputs: ModelInputs) -> list[Part]:
    """On CPUs rows of about `PART` tokens, without the padding that all of them have; on GPUs all rows."""
    lengths = inputs.mask[:, inputs.prefix :].sum(dim=1).tolist()
    longest = inputs.mask.shape[1] - inputs.prefix
    if inputs.mask.is_cuda:
        return [Part(slice(0, len(lengths)), 0)]
    parts, start, most = list[Part](), 0, 0
    for row, length in enumerate(lengths):
        if row > start and (inputs.prefix + max(most, length)) * (row + 1 - start) > PART:
            parts.append(Part(slice(start, row), longest - most))
            start, most = row, 0
        most = max(most, length)
    return [*parts, Part(slice(start, len(lengths)), longest - most)]


def _together(caches: Sequence[DynamicCache], paddings: Sequence[int], before: int) -> DynamicCache:
    """The cache of all rows, from those of parts that lack so much padding after the first positions `before`.

    The caches are emptied.
    """
    for layers in zip(*(cast("list[DynamicLayer]", cache.layers) for cache in caches), strict=True):
        for name in ("keys", "values"):
            states = [_padded(getattr(layer, name), by, before) for layer, by in zip(layers, paddings, strict=True)]
            setattr(layers[0], name, torch.cat(states))
        for layer in layers[1:]:
            layer.reset()
    return caches[0]


def _padded(states: Tensor, by: int, before: int) -> Tensor:
    """Keys or values [b, heads, positions, width] with `by` zeros, which no mask lets through, after `before`."""
    first, rest = states[:, :, :before], states[:, :, before:]
    return torch.cat([first, F.pad(rest, (0, 0, by, 0))], dim=2)


def last_of(hidden: Tensor) -> Tensor:
    """[b, 1, D] in one piece: a CPU would copy the whole output weight once per row to multiply it with a slice."""
    return hidden[:, -1:].contiguous()


def before_end(tokens: list[int], ends: list[int]) -> list[int]:
    stops = [index for index, token in enumerate(tokens) if token in ends]
    return tokens[: stops[0]] if stops else tokens
