"""Log-likelihoods of options behind prompts: each prompt is read once, and its options go on from what was kept of it.

The first token of every option is predicted by the prompt itself, so options of one token need no pass of their own.

Shape letters: B batch, P prefix, T tokens of a prompt, n options in one pass, L tokens of the longest of them but its
last, S predicted tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from components.adapters.present import Leaving, leaving
from components.data.batch import Limits, batch_slices
from components.models.decoding import last_position, read
from components.models.families.base import ModelInputs

if TYPE_CHECKING:
    from components.models.backbone import Backbone

Ids = Sequence[int]  # of one option


class Pass(NamedTuple):
    """Options that are read together, one behind each of `rows`."""

    rows: list[int]
    numbers: list[int]  # of the option among its row's; -1: the row is only there because all rows have to be


@torch.no_grad()
def log_likelihoods(
    model: Backbone,
    inputs: ModelInputs,
    options: Sequence[Sequence[Ids]],
    *,
    limits: Limits,
    rows_leave: bool,
) -> list[list[float]]:
    """By row and option, the natural logarithm of the probability of all its tokens; called in evaluation mode.

    Nothing of what would follow an option counts, its end token neither. Without `rows_leave` adapters need all rows in
    their order: then a pass reads one option of each, whatever the limits say.
    """
    assert len(options) == len(inputs.mask), f"options of {len(options)} rows, but the batch has {len(inputs.mask)}"
    assert all(ids for of in options for ids in of), "an option has no token"
    call = model.family.call(model.model, inputs)
    with leaving(len(options), inputs.mask.device) as there:
        last, cache = read(model, inputs, call, there, in_parts=rows_leave)
        first = _log_probabilities(model, last[:, -1])
        found = [first[row, [ids[0] for ids in of]].double().tolist() for row, of in enumerate(options)]
        position, passes = last_position(call), _passes(options, inputs.mask.shape[1], limits)
        for one in passes if rows_leave else _of_all_rows(options):
            behind = [options[row][number] if number >= 0 else () for row, number in zip(*one, strict=True)]
            sums = _continued(model, inputs.mask, position, cache, there, one.rows, behind)
            for row, number, more in zip(*one, sums, strict=True):
                if number >= 0:
                    found[row][number] += more
    return found


def _passes(options: Sequence[Sequence[Ids]], before: int, limits: Limits) -> Iterator[Pass]:
    """All options of several tokens, long ones first; `before`: positions of the prompts."""
    places = [(row, number) for row, of in enumerate(options) for number, ids in enumerate(of) if len(ids) > 1]
    places.sort(key=lambda place: len(options[place[0]][place[1]]), reverse=True)
    lengths = [before + len(options[row][number]) for row, number in places]
    for part in batch_slices(lengths, batch_size=limits.rows, batch_tokens=limits.tokens):
        yield Pass([row for row, _ in places[part]], [number for _, number in places[part]])


def _of_all_rows(options: Sequence[Sequence[Ids]]) -> Iterator[Pass]:
    """The first option of several tokens of every row, then the second one of every row, and so on."""
    of_rows = [[number for number, ids in enumerate(of) if len(ids) > 1] for of in options]
    for turn in range(max(map(len, of_rows), default=0)):
        yield Pass([*range(len(options))], [of[turn] if turn < len(of) else -1 for of in of_rows])


def _continued(
    model: Backbone,
    mask: Tensor,
    position: Tensor,
    cache: DynamicCache,
    there: Leaving,
    rows: Sequence[int],
    options: Sequence[Ids],
) -> list[float]:
    """What all tokens but the first of each option add to its log-likelihood.

    Options are padded on the right: no token sees what comes after it, so only the mask of later passes would need to
    know, and there are none.
    """
    longest, device = max(map(len, options)) - 1, mask.device
    tokens = torch.tensor([[*ids[:-1], *[0] * (longest - len(ids[:-1]))] for ids in options], device=device)
    places = [at * longest + step for at, ids in enumerate(options) for step in range(len(ids) - 1)]
    behind = torch.tensor(rows, device=device)
    steps = torch.arange(1, longest + 1, device=device)
    call = {
        "attention_mask": torch.cat([mask[behind], mask.new_ones(len(rows), longest)], dim=1),
        "position_ids": position.index_select(-2, behind) + steps,
    }
    embeddings = model.language_model.get_input_embeddings()(tokens)
    with there.repeated(behind):
        hidden = model.decode(embeddings, call, use_cache=True, past_key_values=_behind(cache, behind))
    found = _log_probabilities(model, hidden.flatten(0, 1)[torch.tensor(places, device=device)])
    targets = torch.tensor([token for ids in options for token in ids[1:]], device=device)
    each = found.gather(1, targets.unsqueeze(1)).squeeze(1).double().cpu()
    return [float(part.sum()) for part in each.split([max(len(ids) - 1, 0) for ids in options])]


def _behind(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """What is kept of the prompts of `rows` [n]; `cache` itself stays as it is."""
    found = copy.copy(cache)
    found.layers = [copy.copy(layer) for layer in cache.layers]
    found.batch_select_indices(rows)
    return found


def _log_probabilities(model: Backbone, hidden: Tensor) -> Tensor:
    """[S, D] -> [S, V] float32, of the next token."""
    return model.family.logits(model.model, hidden.contiguous()).float().log_softmax(dim=-1)
