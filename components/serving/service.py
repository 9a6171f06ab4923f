"""The service of one replica, without web and Ray: requests in, events out, checkpoints changed in between."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from components.core.errors import DataError
from components.data.batch import Example
from components.serving.batching import Batcher
from components.serving.metrics import Metrics
from components.serving.options import Batching, Limits
from components.serving.plan import Place, Plan
from components.serving.refusals import Refusal, bad_request
from components.serving.schema import ChatRequest, canonical, decoding_of, row_of
from components.serving.shelf import Version
from components.serving.steering import Done, Event, Job, Piece, too_late

logger = logging.getLogger("littoral.serving")
GRACE_S = 5.0  # beyond its deadline for which a request waits for the model's thread to say so
NO_TASK = "none"  # in figures, where a method does not say which task served


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that is being answered."""

    job: Job
    role: str
    events: asyncio.Queue[Event]
    shadow: Version | None = None  # what answers it once more, unseen

    @property
    def prompt_tokens(self) -> int:
        return len(self.job.example.input_ids)


class Visit:
    """A request's place inside the service, until `leave`, which whoever has one must call."""

    def __init__(self, service: Service) -> None:
        self._service, self._started = service, time.monotonic()
        self.asked: Asked | None = None
        self._left = False

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started

    @property
    def deadline(self) -> float:
        """When it must be over, by time.monotonic."""
        return self._started + self._service.limits.seconds

    async def ask(self, request: ChatRequest) -> Asked:
        """Have a request answered; raises `Refusal`."""
        self.asked = await self._service.ask(request, deadline=self.deadline)
        return self.asked

    def leave(self) -> None:
        """Make room; what is still being generated for it ends."""
        if not self._left:
            self._left = True
            self._service.left(self.asked, self.seconds)


class Service:
    """Answers requests by the current plan. All methods are called in one event loop."""

    def __init__(
        self,
        plan: Plan,
        load: Callable[[Place], Version],
        *,
        limits: Limits,
        batching: Batching,
        metrics: Metrics,
        shadow_log: Path | None = None,
        name: str | None = None,
    ) -> None:
        """`load` makes a checkpoint ready to answer; it may take long and is called in a thread.

        `name` is what requests ask for, whichever run's checkpoint answers later; without it, the first one's run.
        """
        self.limits, self.metrics = limits, metrics
        self._load, self._most, self._shadow_log = load, limits.waiting + batching.rows, shadow_log
        self._versions = {place: load(place) for place in plan.places}
        self.plan = plan
        self.name = name or plan.primary.run
        self._swapping = asyncio.Lock()
        self._inside = self._jobs = 0
        self.ending = False  # no more requests are taken
        self._pace_s = 0.1  # of a request, averaged
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="littoral-encode")
        self._tasks = set[asyncio.Task[None]]()
        self.batcher = Batcher(batching, coming=lambda: self._inside - self._jobs, told=self._began)
        self._show_checkpoints()

    @property
    def version(self) -> Version:
        """The checkpoint that serves."""
        return self._versions[self.plan.primary]

    @property
    def inside(self) -> int:
        """Requests that are being read, wait, or are answered."""
        return self._inside

    @property
    def full(self) -> bool:
        """Whether another request would be sent away."""
        return self._inside >= self._most

    @property
    def notes_shadows(self) -> bool:
        """Whether there is a place for what a shadow replies."""
        return self._shadow_log is not None

    def enter(self) -> Visit:
        """A place inside; raises `Refusal` where too many requests are inside already, or the server ends."""
        if self.ending:
            said = "the server is ending and takes no more requests; ask again when another one is there."
            raise Refusal(503, said, code="ending", retry_after_s=1)
        if self.full:
            wait_s = max(1, round(self._pace_s * self._inside))
            raise Refusal(
                429,
                f"{self._inside} requests are waiting or being answered; ask again in {wait_s} s.",
                code="too_many_requests",
                retry_after_s=wait_s,
            )
        self._inside += 1
        return Visit(self)

    def left(self, asked: Asked | None, seconds: float) -> None:
        """Called once by each visit."""
        self._pace_s += 0.05 * (seconds / self._inside - self._pace_s)
        self._inside -= 1
        if asked is not None:
            asked.job.cancelled = True
            self._jobs -= 1

    def models(self) -> list[str]:
        """The names that a request may ask for: the service's, or where a method must be told the task, `NAME:TASK`."""
        version = self.version
        return [f"{self.name}:{task}" for task in version.tasks] if version.needs_task else [self.name]

    def known(self, model: str) -> str:
        """The name itself; raises `Refusal` for one that `models` has not."""
        if model not in (names := self.models()):
            raise Refusal(
                404,
                f"there is no model {model[:80]!r}; this server has {', '.join(names)}.",
                code="model_not_found",
                param="model",
            )
        return model

    async def ask(self, request: ChatRequest, *, deadline: float) -> Asked:
        """Take a request and have it answered, by `deadline` (of time.monotonic); raises `Refusal`."""
        known_task = self.known(request.model).partition(":")[2] or None
        decoding, same = decoding_of(request, self.limits), canonical(request)
        place, role = self.plan.answers(same)
        version, shadow = self._versions[place], self.plan.shadowed(same)
        if known_task is not None and known_task not in version.tasks:  # learned later than the canary's checkpoint
            version, role = self.version, "primary"
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        example = await loop.run_in_executor(self._encoding, _encoded, version, request, self.limits)
        job = Job(
            version=version,
            example=example,
            decoding=decoding,
            post=lambda event: _in_loop(loop, events, event),
            known_task=known_task,
            stream=bool(request.stream),
            deadline=deadline,
        )
        self._jobs += 1
        self.batcher.put(job)
        other = None if shadow is None or not decoding.greedy else self._versions.get(shadow)
        return Asked(job=job, role=role, events=events, shadow=None if other is version else other)

    async def events(self, asked: Asked) -> AsyncGenerator[Piece | Done, None]:
        """What becomes of a request, the last event being `Done`; raises `Refusal`."""
        event: Event = Piece("")
        while not isinstance(event, Done):
            try:
                event = await asyncio.wait_for(asked.events.get(), asked.job.deadline - time.monotonic() + GRACE_S)
            except TimeoutError as error:
                raise too_late() from error
            if isinstance(event, Refusal):
                raise event
            if isinstance(event, Done):
                self._count(asked, event)
            yield event

    async def swap(self, plan: Plan) -> None:
        """Answer by `plan` from now on. Requests that are inside already end with the checkpoint that they began with.

        Raises what loading raises; then nothing has changed.
        """
        async with self._swapping:
            if plan == self.plan:
                return
            fresh: dict[Place, Version] = {}
            for place in plan.places:
                known = self._versions.get(place)
                fresh[place] = await asyncio.to_thread(self._load, place) if known is None else known
            self._versions, self.plan = fresh, plan
            self.metrics.swaps.inc()
            self._show_checkpoints()
            logger.info("answers come from %s now", plan.primary)

    def close(self, wait_s: float) -> None:
        """Answer what waits, and end."""
        self.batcher.close(wait_s)
        self._encoding.shutdown(wait=False, cancel_futures=True)

    def _began(self, rows: int) -> None:
        self.metrics.rows.observe(rows)

    def _count(self, asked: Asked, done: Done) -> None:
        place, metrics = str(asked.job.version.place), self.metrics
        metrics.prompt_tokens.inc(asked.prompt_tokens)
        metrics.reply_tokens.inc(done.tokens)
        metrics.waited.observe(done.waited_s)
        task = done.route.task or asked.job.known_task or NO_TASK
        metrics.served.labels(checkpoint=place, role=asked.role, task=task).inc()
        if asked.shadow is not None:
            task = asyncio.create_task(self._answer_unseen(asked, asked.shadow, done))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer_unseen(self, asked: Asked, version: Version, done: Done) -> None:
        """Let the shadow answer when nobody waits, and note whether it says the same."""
        loop, events, job = asyncio.get_running_loop(), asyncio.Queue[Event](), asked.job
        second = Job(
            version=version,
            example=job.example,
            decoding=job.decoding,
            post=lambda event: _in_loop(loop, events, event),
            known_task=job.known_task,
        )
        if (job.known_task or version.tasks[0]) not in version.tasks or not self.batcher.put_shadow(second):
            self.metrics.shadows.labels(outcome="left_out").inc()
            return
        event = await events.get()
        if not isinstance(event, Done):
            self.metrics.shadows.labels(outcome="failed").inc()
            return
        equal = event.text == done.text
        self.metrics.shadows.labels(outcome="equal" if equal else "other").inc()
        if self._shadow_log is not None:
            line = {
                "time": round(time.time(), 3),
                "equal": equal,
                "served": str(job.version.place),
                "shadow": str(version.place),
                "reply": done.text,
                "shadow_reply": event.text,
                "task": done.route.task,
                "shadow_task": event.route.task,
            }
            await asyncio.to_thread(append_private, self._shadow_log, json.dumps(line, ensure_ascii=False))

    def _show_checkpoints(self) -> None:
        shown = self.metrics.checkpoint
        shown.clear()
        for role in ("primary", "canary", "shadow"):
            if (place := getattr(self.plan, role)) is not None:
                shown.labels(checkpoint=str(place), role=role).set(1)


def _encoded(version: Version, request: ChatRequest, limits: Limits) -> Example:
    """What a request asks, as the model takes it; raises `Refusal`."""
    row = row_of(request, limits)
    try:
        return version.encoder.prompt_example(row)
    except DataError as error:
        said = str(error).removeprefix("row request: ").replace("row request", "the request")
        if too_long := said.endswith("to cut or skip."):  # advice for whoever prepares rows
            said = f"{said.partition(';')[0]}; shorten it."
        code = "context_length_exceeded" if too_long else "invalid_value"
        raise bad_request(said, param="messages", code=code) from error


def _in_loop(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    """Put an event into a queue of a loop that runs in another thread, or has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(events.put_nowait, event)


def append_private(path: Path, line: str) -> None:
    """One more line of a file that only its user may read. Several processes may append: a line is one write."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, f"{line}\n".encode("utf-8", "surrogatepass"))
    except OSError:
        logger.warning("the shadow's log %s cannot be written", path)
    finally:
        os.close(handle)
