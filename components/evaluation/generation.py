"""Answer prompts with a model and a method: batched, length-sorted, left-padded. Replies are generated, greedily, or
the likeliest of a row's options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from components.adapters.compute import shared_weights
from components.data.batch import Batch, Example, Limits, batch_slices, collate
from components.evaluation.choosing import Choosing, Option
from components.evaluation.replies import likeliest
from components.evaluation.reuse import KeptReply, Made, Reuse, prompts_digest
from components.methods.base import Method, Selection

if TYPE_CHECKING:
    from components.models.backbone import Backbone
    from components.models.decoding import Steering
    from components.models.encoding import Encoder

POOL = 4  # batches whose rows take each other's places


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
    options: tuple[str, ...] | None = None  # of which `text` is one; None: it was generated
    log_likelihoods: tuple[float, ...] | None = None  # of the options
    oracle_log_likelihoods: tuple[float, ...] | None = None


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
    choosing: Choosing | None = None,
    refill: bool = False,
) -> list[Answer]:
    """Reply to every example, in the given order.

    A batch holds at most `batch_size` rows and, padding and new tokens counted, at most `batch_tokens` tokens, but
    always one row. `known_task`: the task of the examples, for a method that needs to know it. With `oracle_task`, each
    batch whose selection differs from the selection with the task known is answered a second time; where both select
    alike the reply is the same computation and is reused. With `reuse`, so are replies from before. With `choosing`,
    rows with options are answered by one of them, in batches of their own; a pass over options has the same limits.
    With `refill`, `POOL` batches are answered as one in which the next rows take the places of those that have ended,
    unless the method's rows have to stay.
    """
    refill, limits = refill and method.rows_leave, Limits(batch_size, batch_tokens)
    options = {} if choosing is None else choosing.options
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids), reverse=True)
    open_rows = [index for index in order if examples[index].sample_id not in options]
    closed_rows = [index for index in order if examples[index].sample_id in options]
    longest = max((len(one.ids) for index in closed_rows for one in options[examples[index].sample_id]), default=0)
    batches = [
        *_batches(examples, open_rows, max_new_tokens, *((batch_size * POOL, None) if refill else limits)),
        *_batches(examples, closed_rows, longest, *limits),
    ]
    answers: dict[int, Answer] = {}
    for chosen in batches:
        batch = prompts([examples[index] for index in chosen], encoder, torch.device("cpu"), known_task)
        digest = "" if reuse is None else prompts_digest(batch)
        batch = batch.to(device)
        if choosing is not None and batch.sample_ids[0] in options:
            of_rows = [options[name] for name in batch.sample_ids]
            asked = [choosing.by, [[one.ids for one in of] for of in of_rows], batch_size, batch_tokens]
            say = partial(_choose, model, method, choosing, of_rows, limits=limits)
        else:
            of_rows, asked = None, [max_new_tokens, *limits] if refill else max_new_tokens
            at_once = limits if refill else None
            say = partial(_generate, model, method, encoder, max_new_tokens=max_new_tokens, refill=at_once)
        answered = partial(_answered, model, method, say, asked=asked, digest=digest, reuse=reuse)
        said, selection, made = answered(batch)
        oracle_said: list[_Said] | None = None
        oracle_made: Made | None = None
        if oracle_task is not None:
            oracle_said = said
            known = replace(batch, oracle_task=oracle_task)
            if not _same_slots(method, model, known, selection):
                oracle_said, _, oracle_made = answered(known)
        for row, index in enumerate(chosen):
            found = _answer_of(examples[index].sample_id, row, selection, said, made, oracle_said, oracle_made)
            chosen_from = None if of_rows is None else tuple(one.text for one in of_rows[row])
            answers[index] = replace(found, options=chosen_from)
        progress(len(answers))
    return [answers[index] for index in range(len(examples))]


def _batches(
    examples: Sequence[Example], order: list[int], more: int, batch_size: int, batch_tokens: int | None
) -> list[list[int]]:
    """The rows of each batch, from rows of falling length; `more`: tokens that may come after a prompt."""
    lengths = [len(examples[index].input_ids) + more for index in order]
    return [order[part] for part in batch_slices(lengths, batch_size=batch_size, batch_tokens=batch_tokens)]


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


class _Said(NamedTuple):
    text: str
    log_likelihoods: tuple[float, ...] | None = None  # of the row's options


def _answer_of(
    sample_id: str,
    row: int,
    selection: Selection,
    said: list[_Said],
    made: Made | None,
    oracle_said: list[_Said] | None,
    oracle_made: Made | None,
) -> Answer:
    """What was said and done for one row of a batch, but for its options."""
    return Answer(
        sample_id=sample_id,
        text=said[row].text,
        slots=None if selection.slots is None else tuple(selection.slots[row].tolist()),
        routed_to=None if selection.routed_to is None else selection.routed_to[row],
        matched=None if selection.matched is None else selection.matched[row],
        oracle_text=None if oracle_said is None else oracle_said[row].text,
        key=None if made is None else made.keys[row],
        oracle_key=None if oracle_made is None else oracle_made.keys[row],
        kept=None if made is None or made.kept is None else made.kept[row],
        unaided=made is not None and made.unaided,
        log_likelihoods=said[row].log_likelihoods,
        oracle_log_likelihoods=None if oracle_said is None else oracle_said[row].log_likelihoods,
    )


def _generate(
    model: Backbone, method: Method, encoder: Encoder, batch: Batch, *, max_new_tokens: int, refill: Limits | None
) -> list[_Said]:
    generated = model.generate(batch, max_new_tokens=max_new_tokens, rows_leave=method.rows_leave, refill=refill)
    return [_Said(encoder.decode(ids)) for ids in generated]


def _choose(
    model: Backbone,
    method: Method,
    choosing: Choosing,
    options: Sequence[Sequence[Option]],
    batch: Batch,
    *,
    limits: Limits,
) -> list[_Said]:
    tokens = [[one.ids for one in of] for of in options]
    found = model.log_likelihoods(batch, tokens, limits=limits, rows_leave=method.rows_leave)
    texts = [[one.text for one in of] for of in options]
    places = [likeliest(choosing.by, *each) for each in zip(texts, found, strict=True)]
    return [_Said(of[at], tuple(each)) for of, at, each in zip(texts, places, found, strict=True)]


def _answered(
    model: Backbone,
    method: Method,
    say: Callable[[Batch], list[_Said]],
    batch: Batch,
    *,
    asked: object,
    digest: str,
    reuse: Reuse | None,
) -> tuple[list[_Said], Selection, Made | None]:
    """What the rows are answered, or were before, and what it comes from; `digest` is `prompts_digest` of the batch."""
    with shared_weights(), method.select(model, batch) as selection:
        made = None if reuse is None else reuse.made(model, method, batch, digest, asked)
        if made is not None and made.kept is not None:
            kept = [_Said(row.text, row.log_likelihoods) for row in made.kept]
            return kept, made.selection(selection), made
        return say(batch), method.served(selection), made


def _same_slots(method: Method, model: Backbone, batch: Batch, selection: Selection) -> bool:
    if selection.slots is None:
        return False
    with method.select(model, batch) as known:
        assert known.slots is not None
        return torch.equal(known.slots.sort(dim=1).values, selection.slots.sort(dim=1).values)
