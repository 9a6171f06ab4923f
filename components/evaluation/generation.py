"""Answer prompts with a model and a method: greedy, batched, length-sorted, left-padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from components.adapters.compute import shared_weights
from components.data.batch import Batch, Example, collate
from components.evaluation.reuse import KeptReply, Made, Reuse, prompts_digest
from components.methods.base import Method, Selection

if TYPE_CHECKING:
    from components.models.backbone import Backbone, Steering
    from components.models.encoding import Encoder


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One reply. `slots` and `routed_to` tell which parameters answered, for methods that route."""

    sample_id: str
    text: str
    slots: tuple[int, ...] | None = None
    routed_to: str | None = None
    matched: bool | None = None  # False: nothing matched the sample and a fallback answered it
    oracle_text: str | None = None  # the reply with the task known; None when not asked for
    key: str | None = None  # of what made the reply: see reuse.py; None where nobody asked
    oracle_key: str | None = None  # of the oracle's reply where that is a computation of its own
    kept: KeptReply | None = None  # the reply as it was kept; None: it was answered now
    unaided: bool = False  # the frozen model alone answered


@torch.inference_mode()
def answer(
    model: Backbone,
    method: Method,
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    batch_size: int,
    batch_tokens: int | None = None,
    max_new_tokens: int,
    device: torch.device,
    known_task: str | None = None,
    oracle_task: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
    reuse: Reuse | None = None,
) -> list[Answer]:
    """Reply to every example, in the given order.

    A batch holds at most `batch_size` rows and, padding and new tokens counted, at most `batch_tokens` tokens, but
    always one row. `known_task`: the task of the examples, for a method that needs to know it. With `oracle_task`, each
    batch whose selection differs from the selection with the task known is answered a second time; where both select
    alike the reply is the same computation and is reused. With `reuse`, so are replies from before.
    """
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids), reverse=True)
    answers: dict[int, Answer] = {}
    lengths = [len(examples[index].input_ids) + max_new_tokens for index in order]
    for part in batch_slices(lengths, batch_size=batch_size, batch_tokens=batch_tokens):
        chosen = order[part]
        batch = prompts([examples[index] for index in chosen], encoder, torch.device("cpu"), known_task)
        digest = "" if reuse is None else prompts_digest(batch)
        batch = batch.to(device)
        answered = partial(_answered, model, method, encoder, max_new_tokens=max_new_tokens, digest=digest, reuse=reuse)
        texts, selection, made = answered(batch)
        oracle_texts: list[str] | None = None
        oracle_made: Made | None = None
        if oracle_task is not None:
            oracle_texts = texts
            known = replace(batch, oracle_task=oracle_task)
            if not _same_slots(method, model, known, selection):
                oracle_texts, _, oracle_made = answered(known)
        for row, index in enumerate(chosen):
            answers[index] = Answer(
                sample_id=examples[index].sample_id,
                text=texts[row],
                slots=None if selection.slots is None else tuple(selection.slots[row].tolist()),
                routed_to=None if selection.routed_to is None else selection.routed_to[row],
                matched=None if selection.matched is None else selection.matched[row],
                oracle_text=None if oracle_texts is None else oracle_texts[row],
                key=None if made is None else made.keys[row],
                oracle_key=None if oracle_made is None else oracle_made.keys[row],
                kept=None if made is None or made.kept is None else made.kept[row],
                unaided=made is not None and made.unaided,
            )
        progress(part.stop)
    return [answers[index] for index in range(len(examples))]


def batch_slices(lengths: Sequence[int], *, batch_size: int, batch_tokens: int | None) -> Iterator[slice]:
    """Parts of rows with falling `lengths`, each with as many rows as both limits allow, and at least one."""
    start = 0
    while start < len(lengths):
        fitting = batch_size if batch_tokens is None else max(1, batch_tokens // lengths[start])
        stop = min(start + min(batch_size, fitting), len(lengths))
        yield slice(start, stop)
        start = stop


def prompts(examples: Sequence[Example], encoder: Encoder, device: torch.device, known_task: str | None) -> Batch:
    """The batch of `examples` to be answered, on `device`; `known_task` for a method that needs to know it."""
    batch = collate(examples, pad_id=encoder.pad_id, padding_side="left").to(device)
    return replace(batch, oracle_task=known_task)


@torch.inference_mode()
def reply(
    model: Backbone,
    method: Method,
    encoder: Encoder,
    batch: Batch,
    max_new_tokens: int,
    steer: Callable[[Callable[[], Selection]], Steering] | None = None,
) -> tuple[list[str], Selection]:
    """Answer a batch whose rows may be served by different parameters, and say what served each.

    `steer` makes what steers the replies. It gets a function that says what serves the rows, to be called after the
    first token and not before.
    """
    with shared_weights(), method.select(model, batch) as selection:
        steering = None if steer is None else steer(lambda: method.served(selection))
        generated = model.generate(
            batch, max_new_tokens=max_new_tokens, steering=steering, rows_leave=method.rows_leave
        )
        selection = method.served(selection)
    return [encoder.decode(ids) for ids in generated], selection


def _answered(
    model: Backbone,
    method: Method,
    encoder: Encoder,
    batch: Batch,
    *,
    max_new_tokens: int,
    digest: str,
    reuse: Reuse | None,
) -> tuple[list[str], Selection, Made | None]:
    """As `reply`, or kept replies, and what they come from; `digest` is `prompts_digest` of the batch."""
    if reuse is None:
        return *reply(model, method, encoder, batch, max_new_tokens), None
    with shared_weights(), method.select(model, batch) as selection:
        made = reuse.made(model, method, batch, digest, max_new_tokens)
        if made.kept is not None:
            return [row.text for row in made.kept], made.selection(selection), made
        generated = model.generate(batch, max_new_tokens=max_new_tokens, rows_leave=method.rows_leave)
        selection = method.served(selection)
    return [encoder.decode(ids) for ids in generated], selection, made


def _same_slots(method: Method, model: Backbone, batch: Batch, selection: Selection) -> bool:
    if selection.slots is None:
        return False
    with method.select(model, batch) as known:
        assert known.slots is not None
        return torch.equal(known.slots.sort(dim=1).values, selection.slots.sort(dim=1).values)
