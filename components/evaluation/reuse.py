"""Replies that are kept: a batch whose rows, weights and serving parameters are, bit for bit, what they were before.

What a batch of prompts is answered with is one digest, from which each of its rows has a *key*: the arithmetic
(`Backbone.arithmetic`), the prompts and pictures of all its rows in their order, and what the method says serves it
(`Method.serving`), or the method's whole state where it says nothing. The same key means the same computation, so the
reply that the key has is the one that would come out.

The unit is the batch, although it is rows that change: which rows are padded and multiplied together changes a row's
numbers by rounding. A row that has not changed is answered again with a neighbour that has, so reuse changes no reply.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from components.adapters.serving import Digests, tensors_digest
from components.data.batch import Batch
from components.methods.base import Method, Selection

if TYPE_CHECKING:
    from components.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptReply:
    """One reply, and where it was answered."""

    text: str
    cell: str  # "zero-shot" or the task after which it was answered first
    run: str | None = None  # the run that answered it; None: this one
    slots: tuple[int, ...] | None = None
    routed_to: str | None = None
    matched: bool | None = None
    log_likelihoods: tuple[float, ...] | None = None  # of the row's options, where one of them is the reply


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a batch's replies come from."""

    keys: list[str]  # by row
    stated: bool  # the method said what serves the batch, so `select` says all that is known of the selection
    unaided: bool  # by the frozen model alone
    kept: list[KeptReply] | None  # the replies, by row, if all of them are kept

    def selection(self, chosen: Selection) -> Selection:
        """That of the kept replies; `chosen` is what `select` chose now, before any forward pass."""
        if self.stated or self.kept is None:
            return chosen
        slots = [row.slots for row in self.kept]
        routed = [row.routed_to for row in self.kept if row.routed_to is not None]
        matched = [row.matched for row in self.kept if row.matched is not None]
        return Selection(
            slots=torch.tensor(slots) if all(row is not None for row in slots) else None,
            routed_to=routed if len(routed) == len(slots) else None,
            matched=matched if len(matched) == len(slots) else None,
        )


class Reuse:
    """The kept replies of one task or suite, and how to find those of a batch. Good while no weight changes."""

    def __init__(
        self,
        *,
        known: Mapping[str, KeptReply],
        arithmetic: str,
        state: str,
        digests: Digests,
        asked: Sequence[object] = (),
    ) -> None:
        """`state`: the digest of the method's whole state. `asked`: anything else of JSON that replies depend on."""
        self._known, self._arithmetic, self._state, self._digests = known, arithmetic, state, digests
        self._asked = list(asked)

    def made(self, model: Backbone, method: Method, batch: Batch, prompts: str, asked: object) -> Made:
        """Called inside `select`, with `prompts_digest` of the batch. `asked`, of JSON: how long replies may get, or
        the rows' options and how one of them is chosen.
        """
        served = method.serving(model, batch, self._digests)
        # A method that says nothing may look at all that it is given: its seed, the task's name, the whole test file,
        # and questions in full, of which prompts may have been cut.
        untold = [method.config.name, method.seed, self._state, batch.oracle_task, batch.instructions, self._asked]
        # Rows that leave a batch change how many are multiplied together.
        how = [asked, method.rows_leave]
        content = [self._arithmetic, how, prompts, untold if served is None else served]
        if served != "":
            content.append(foreign_code(type(method)))
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        keys = [hashlib.sha256(f"{digest} {row}".encode()).hexdigest()[:32] for row in range(len(batch))]
        kept = [self._known[key] for key in keys if key in self._known]
        return Made(
            keys=keys,
            stated=served is not None,
            unaided=served == "",
            kept=kept if len(kept) == len(keys) else None,
        )


@cache
def foreign_code(kind: type[Method]) -> str:
    """SHA-256 of the source files of a method from elsewhere; "" for ours, which are in `Backbone.arithmetic`."""
    classes = [
        one for one in kind.__mro__ if one.__module__.partition(".")[0] not in ("components", "typing", "builtins")
    ]
    found = hashlib.sha256()
    for one in classes:
        try:
            found.update(Path(inspect.getfile(one)).read_bytes())
        except (OSError, TypeError):  # made where there is no file, in a notebook, say
            found.update(repr(one).encode())
    return found.hexdigest() if classes else ""


def prompts_digest(batch: Batch) -> str:
    """SHA-256 of all that a batch's rows give to the model: tokens, padding, and pictures as the model takes them.

    One digest a batch, not one a row: to call it takes longer than to digest a prompt.
    """
    found = hashlib.sha256(tensors_digest({"ids": batch.input_ids, "mask": batch.attention_mask}).encode())
    for row, pictures in enumerate(batch.pictures):
        for each in pictures:
            found.update(f"{row} {each.num_tokens} {tensors_digest(each.tensors)}\n".encode())
    return found.hexdigest()
