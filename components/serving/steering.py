"""Replies of a batch while they are generated: sampled or greedy, cut at stops, sent as they grow, each to its end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from components.data.batch import Example
from components.methods.base import Selection
from components.serving.refusals import Refusal
from components.serving.schema import Decoding
from components.serving.shelf import Version

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a longer character are decoded to


@dataclass(frozen=True, kw_only=True)
class Route:
    """What served a reply; None where the method does not say."""

    task: str | None = None
    slots: tuple[int, ...] | None = None
    matched: bool | None = None


@dataclass(frozen=True)
class Piece:
    """What a reply has grown by."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """A whole reply."""

    text: str
    finish: str  # "stop" or "length", as OpenAI has it
    tokens: int
    route: Route
    rows: int  # of the batch that it was answered in
    waited_s: float  # until its batch began


Event = Piece | Done | Refusal


@dataclass(kw_only=True, eq=False)
class Job:
    """A request to be answered. `post` is called in the model's thread, the last time with `Done` or a refusal."""

    version: Version
    example: Example
    decoding: Decoding
    post: Callable[[Event], None]
    known_task: str | None = None
    stream: bool = False
    deadline: float = float("inf")  # of time.monotonic
    queued: float = field(default_factory=time.monotonic)
    cancelled: bool = False  # whoever asked has gone
    ended: bool = False
    posted: bool = False  # a part of the reply is on its way

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the longest reply."""
        return len(self.example.input_ids) + self.decoding.max_tokens

    def tell(self, event: Event) -> None:
        """Post an event, unless the last one was posted."""
        if self.ended:
            return
        self.ended, self.posted = not isinstance(event, Piece), True
        if not self.cancelled:
            self.post(event)


class Growing:
    """A reply that grows by tokens. What `grown` returns, joined, begins `text`, whatever comes after it."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str]) -> None:
        self._decode, self._stops = decode, stops
        self.ids: list[int] = []
        self.text, self.stopped, self._sent = "", False, 0

    def add(self, token: int, *, look: bool) -> None:
        """Take a token; `look` decodes, which only streams and stops need before the end."""
        self.ids.append(token)
        if look or self._stops:
            self._read()

    def grown(self, *, whole: bool = False) -> str:
        """What can be said since the last time: no part of a stop or of a character that may still come."""
        safe = self.text if whole else self.text[: len(self.text) - self._held()].rstrip()
        new = safe[self._sent :]
        self._sent = max(self._sent, len(safe))
        return new

    def finish(self) -> str:
        """The reply at its end: as evaluation decodes it, cut at a stop."""
        if not self.stopped:
            self._read()
        return self.text

    def _read(self) -> None:
        self.text = self._decode(self.ids)
        found = [at for stop in self._stops if (at := self.text.find(stop)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)].rstrip(), True

    def _held(self) -> int:
        """Characters at the end that may still turn out to be something else."""
        if self.stopped:
            return 0
        unfinished = len(self.text) - len(self.text.rstrip(UNFINISHED))
        starts = (size for stop in self._stops for size in range(1, len(stop)) if self.text.endswith(stop[:size]))
        return max(unfinished, *starts, 0)


class Reply:
    """What is generated for a job, and what it is told."""

    def __init__(self, job: Job, *, rows: int, route: Route | None = None) -> None:
        """`rows` are answered together, with this one."""
        self.job, self.rows, self.route = job, rows, route or Route()
        self._growing = Growing(job.version.encoder.decode, job.decoding.stops)
        self._began = time.monotonic()
        self._drawn = None
        if not job.decoding.greedy:
            self._drawn = torch.Generator(job.version.model.device).manual_seed(_seed(job.decoding.seed))

    @property
    def over(self) -> bool:
        """Whether nothing more is to be generated."""
        return self.job.ended or self.job.cancelled

    def follow(self, token: int, *, at_end: bool, now: float) -> None:
        """Take the next token; `at_end`: one that ends a reply, and is no part of it."""
        job, growing = self.job, self._growing
        if self.over:
            return
        if not at_end:
            growing.add(token, look=job.stream)
        if at_end or growing.stopped or len(growing.ids) == job.decoding.max_tokens:
            text = growing.finish()
            if job.stream and (rest := growing.grown(whole=True)):
                job.tell(Piece(rest))
            job.tell(
                Done(
                    text=text,
                    finish="stop" if at_end or growing.stopped else "length",
                    tokens=len(growing.ids),
                    route=self.route,
                    rows=self.rows,
                    waited_s=self._began - job.queued,
                )
            )
        elif now > job.deadline:
            job.tell(too_late())
        elif job.stream and (new := growing.grown()):
            job.tell(Piece(new))

    def draw(self, logits: Tensor) -> Tensor | None:
        """The next token, for logits [vocabulary]; None where the likeliest one is meant."""
        return None if self._drawn is None or self.over else sampled(logits.float(), self.job.decoding, self._drawn)


def chosen(replies: Sequence[Reply], logits: Tensor) -> Tensor:
    """The next token of each reply [B] int64, for logits [B, vocabulary]."""
    tokens = logits.argmax(dim=-1)
    for row, reply in enumerate(replies):
        if (drawn := reply.draw(logits[row])) is not None:
            tokens[row] = drawn
    return tokens


class Steered:
    """Steers a batch that is answered to its end (`components.models.decoding.Steering`): one row for each job."""

    def __init__(self, jobs: Sequence[Job], served: Callable[[], Selection]) -> None:
        self._served: Callable[[], Selection] | None = served
        self._replies = [Reply(job, rows=len(jobs)) for job in jobs]

    def choose(self, logits: Tensor) -> Tensor:
        return chosen(self._replies, logits)

    def seen(self, tokens: Tensor, ended: Tensor) -> Tensor:
        if self._served is not None:
            for reply, route in zip(self._replies, routes(self._served(), len(self._replies)), strict=True):
                reply.route = route
            self._served = None
        now = time.monotonic()
        for reply, token, over in zip(self._replies, tokens.tolist(), ended.tolist(), strict=True):
            reply.follow(token, at_end=over, now=now)
        return torch.tensor([reply.over for reply in self._replies], device=tokens.device)


def too_late() -> Refusal:
    """What a request hears whose time is over."""
    return Refusal(504, "the request took too long; ask for fewer tokens, or again later.", code="timeout")


def routes(selection: Selection, rows: int) -> list[Route]:
    """What served each row."""
    slots = None if selection.slots is None else selection.slots.tolist()
    return [
        Route(
            task=None if selection.routed_to is None else selection.routed_to[row],
            slots=None if slots is None else tuple(slots[row]),
            matched=None if selection.matched is None else selection.matched[row],
        )
        for row in range(rows)
    ]


def sampled(logits: Tensor, decoding: Decoding, generator: torch.Generator) -> Tensor:
    """A token drawn from logits [vocabulary] float32, from the smallest set whose probability reaches `top_p`."""
    probabilities = (logits / decoding.temperature).softmax(dim=-1)
    if decoding.top_p < 1.0:
        ordered, places = probabilities.sort(descending=True)
        kept = ordered.cumsum(dim=-1) - ordered < decoding.top_p
        probabilities = torch.zeros_like(probabilities).scatter_(0, places[kept], ordered[kept])
    return torch.multinomial(probabilities, 1, generator=generator)[0]


def _seed(given: int | None) -> int:
    return secrets.randbits(63) if given is None else given & ((1 << 63) - 1)
