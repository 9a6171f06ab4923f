"""A batch that never has to end: rows leave when their replies have ended, and other requests join at any step.

What a method holds of each row is chosen anew for the rows at hand (`Method.rows_join`); what the decoder keeps of each
stays. A row is masked from the padding that longer neighbours bring, as in any batch.

Shape letter: b rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.adapters.compute import shared_weights
from components.adapters.present import Leaving, leaving
from components.evaluation.generation import prompts
from components.models.decoding import PLAIN_CALL, last_position, read
from components.models.refilling import Going, joins, step
from components.serving.steering import Job, Reply, chosen, routes

if TYPE_CHECKING:
    from components.serving.shelf import Version


@dataclass
class _Rows:
    """Replies in the making, and what the decoder has of each. Between two steps the newest tokens are not read yet."""

    replies: list[Reply]
    going: Going

    def say(self, logits: Tensor, ends: Sequence[int]) -> None:
        """Choose tokens for logits [b, vocabulary], tell whoever asked, and let those go that have their reply."""
        going, now = self.going, time.monotonic()
        going.token = chosen(self.replies, logits)
        for reply, token in zip(self.replies, going.token.tolist(), strict=True):
            reply.follow(token, at_end=token in ends, now=now)
        staying = [row for row, reply in enumerate(self.replies) if not reply.over]
        if len(staying) < len(self.replies):
            self.replies = [self.replies[row] for row in staying]
            going.keep(torch.tensor(staying, device=logits.device, dtype=torch.int64))


class Running:
    """Jobs of one checkpoint, and of one task where the method must be told it, that are answered together."""

    def __init__(self, version: Version, known_task: str | None) -> None:
        self.version, self.known_task = version, known_task
        self.joinable = version.method.rows_join
        self._ends = version.model.end_ids()
        self._rows: _Rows | None = None
        self._joining: Sequence[Job] = ()
        self._there: Leaving | None = None  # of the selection in force; None: it has to be made for the rows at hand
        self._scope, self._whole = ExitStack(), ExitStack()

    def __enter__(self) -> Running:
        self._whole.enter_context(torch.inference_mode())
        self._whole.enter_context(self.version.method.separate_rows())
        self._whole.enter_context(self.version.model.answering())
        return self

    def __exit__(self, *error: object) -> None:
        self._scope.close()
        self._whole.close()

    @property
    def jobs(self) -> list[Job]:
        """Those whose replies have not ended, or are about to be begun."""
        running = [] if self._rows is None else [reply.job for reply in self._rows.replies]
        return [*running, *self._joining]

    def join(self, jobs: Sequence[Job]) -> None:
        """Read the prompts of more jobs, and say their first tokens."""
        self._joining = jobs
        self._leave_selection()
        number, model, method = len(self.jobs), self.version.model, self.version.method
        batch = prompts([job.example for job in jobs], self.version.encoder, model.device, self.known_task)
        with shared_weights(), method.select(model, batch) as selection, leaving(len(jobs), model.device) as there:
            inputs = model.inputs(batch)
            call = model.family.call(model.model, inputs)
            last, cache = read(model, inputs, call, there, in_parts=method.rows_leave)
            going = Going(rows=there.rows, mask=inputs.mask, position=last_position(call), cache=cache, last=last)
            logits = model.family.logits(model.model, last)[:, -1]
            served = routes(method.served(selection), len(jobs))
        # One mask, and all positions kept by every layer: otherwise rows of two passes do not fit beside each other.
        self.joinable = self.joinable and call.keys() == PLAIN_CALL and joins(cache)
        fresh = _Rows([Reply(job, rows=number, route=route) for job, route in zip(jobs, served, strict=True)], going)
        fresh.say(logits, self._ends)
        if self._rows is None or not self._rows.replies:
            self._rows = fresh
        elif fresh.replies:
            self._rows.going.join(fresh.going)
            self._rows.replies += fresh.replies
            for reply in self._rows.replies:
                reply.rows = max(reply.rows, number)
        self._joining = ()

    def let_go(self) -> None:
        """Of those that were joining when something was raised; those inside go on."""
        self._joining = ()

    def step(self) -> None:
        """Say the next token of each reply."""
        rows, model = self._rows, self.version.model
        if rows is None or not rows.replies:
            return
        if self._there is None:
            self._there = self._selected(rows)
        step(model, rows.going, self._there)
        rows.say(model.family.logits(model.model, rows.going.last)[:, -1], self._ends)

    def _selected(self, rows: _Rows) -> Leaving:
        """Put in force what serves the rows at hand, until some join."""
        model = self.version.model
        examples = [reply.job.example for reply in rows.replies]
        batch = prompts(examples, self.version.encoder, model.device, self.known_task)
        self._scope.enter_context(shared_weights())
        self._scope.enter_context(self.version.method.select(model, batch))
        there = self._scope.enter_context(leaving(len(examples), model.device))
        rows.going.rows = there.rows  # of the batch that was just selected for
        return there

    def _leave_selection(self) -> None:
        self._there = None
        self._scope.close()
