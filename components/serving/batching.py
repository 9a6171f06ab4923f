"""Requests are answered together: a queue, and one thread that runs the model on what is in it.

Rows of a batch may be served by different tasks' parameters, as in evaluation, and have different lengths, temperatures
and ends. What one batch has in common is the checkpoint, and the task where a method must be told it. Where rows of the
method can, requests join the batch that is being answered, unless another kind of request has waited longer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from components.evaluation.generation import prompts, reply
from components.serving.options import Batching
from components.serving.refusals import Refusal
from components.serving.running import Running
from components.serving.steering import Job, Steered, too_late

logger = logging.getLogger("littoral.serving")
STEP_S = 0.005  # how long a batch waits for another request before it looks whether one is on its way
# A pass over prompts costs about as much for one as for several, so a single request waits for others, but a few steps.
JOIN_SHARE, JOIN_AFTER = 0.25, 4  # of the rows at hand; steps


class Batcher:
    """Answers jobs, the oldest first. `coming` says how many requests will be jobs in a moment."""

    def __init__(
        self,
        batching: Batching,
        *,
        coming: Callable[[], int] = lambda: 0,
        told: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """`told` hears of every batch that begins or that others join: how many rows it has."""
        self._batching, self._coming, self._told = batching, coming, told
        self._jobs: deque[Job] = deque()
        self._shadows: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="littoral-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that no batch has taken yet."""
        return len(self._jobs)

    @property
    def alive(self) -> bool:
        """Whether jobs are being answered."""
        return self._thread.is_alive()

    def put(self, job: Job) -> None:
        """Answer it when it is due."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def put_shadow(self, job: Job) -> bool:
        """Answer it when nothing else waits; False: it is left out, since a whole batch of such waits already."""
        with self._changed:
            if len(self._shadows) >= self._batching.rows:
                return False
            self._shadows.append(job)
            self._changed.notify()
            return True

    def close(self, wait_s: float) -> None:
        """Answer what waits, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(wait_s)

    def _work(self) -> None:
        while (jobs := self._take()) is not None:
            self._answer(jobs)

    def _take(self) -> list[Job] | None:
        """The next batch, possibly empty; None at the end."""
        with self._changed:
            while not self._jobs and not self._shadows:
                if self._closed:
                    return None
                self._changed.wait()
            if not self._jobs:
                return self._together(self._shadows)
            self._wait_for_more()
            return self._together(self._jobs)

    def _wait_for_more(self) -> None:
        """While the batch is not full and requests are on their way, wait for them, but not for long."""
        last = time.monotonic() + self._batching.wait_ms / 1000
        found = 0
        while len(self._jobs) < self._batching.rows and (now := time.monotonic()) < last and not self._closed:
            if len(self._jobs) == found and not self._coming():
                return
            found = len(self._jobs)
            self._changed.wait(min(STEP_S, last - now))

    def _joining(self, running: Running, steps: int) -> list[Job]:
        """Jobs that join what is being answered, since which so many steps were made without."""
        with self._changed:
            waiting = len(self._jobs)
            if not (running.joinable and running.jobs and waiting):
                return []
            if steps < JOIN_AFTER and waiting < JOIN_SHARE * len(running.jobs):
                return []
            return self._together(self._jobs, running.jobs)

    def _together(self, queue: deque[Job], inside: Sequence[Job] = ()) -> list[Job]:
        """The oldest job and those behind it that can be answered with it, or with those `inside`, taken out.

        Nobody overtakes a job that cannot join those inside: it would never be its turn.
        """
        now, taken, left = time.monotonic(), [*inside], list[Job]()
        for job in queue:
            if job.cancelled:
                continue
            if now > job.deadline:
                job.tell(too_late())
            elif self._fits(taken, job) and not (inside and left):
                taken.append(job)
            else:
                left.append(job)
        queue.clear()
        queue.extend(left)
        return taken[len(inside) :]

    def _fits(self, taken: list[Job], job: Job) -> bool:
        if not taken:
            return True
        same = taken[0].version is job.version and taken[0].known_task == job.known_task
        if not same or len(taken) == self._batching.rows:
            return False
        longest = max(each.length for each in (*taken, job))
        return self._batching.tokens is None or longest * (len(taken) + 1) <= self._batching.tokens

    def _answer(self, jobs: Sequence[Job], *, alone: bool = False) -> None:
        """`alone`: nobody joins them."""
        if not jobs:
            return
        running = Running(jobs[0].version, jobs[0].known_task)
        try:
            if running.joinable:
                self._run(running, jobs, alone=alone)
            else:
                self._told(len(jobs))
                answer_jobs(jobs)
        except Exception:  # whatever a model raises, the next batch is answered
            inside = list(dict.fromkeys([*running.jobs, *jobs]))
            logger.exception("a batch of %d requests failed", len(inside))
            for job in _left(inside):
                if alone or len(inside) == 1 or job.posted:
                    job.tell(failed())
                else:  # the fault of one request is not that of the others
                    self._answer([job], alone=True)
        finally:
            for job in (*running.jobs, *jobs):
                job.tell(failed())

    def _run(self, running: Running, jobs: Sequence[Job], *, alone: bool) -> None:
        """Until nobody is left, and nobody has joined."""
        joining, steps = jobs, 0
        with running:
            while joining or running.jobs:
                if joining:
                    self._join(running, joining)
                    steps = 0
                running.step()
                steps += 1
                joining = [] if alone else self._joining(running, steps)

    def _join(self, running: Running, jobs: Sequence[Job]) -> None:
        """Have them join. A request that cannot be read harms neither those that join with it nor those inside."""
        try:
            running.join(jobs)
            self._told(len(running.jobs))
        except Exception:
            logger.exception("the prompts of %d requests could not be read", len(jobs))
            running.let_go()
            for job in _left(jobs):
                if len(jobs) == 1 or job.posted:
                    job.tell(failed())
                else:
                    self._answer([job], alone=True)


def _left(jobs: Sequence[Job]) -> list[Job]:
    """Those that still wait for something."""
    return [job for job in jobs if not job.ended and not job.cancelled]


def answer_jobs(jobs: Sequence[Job]) -> None:
    """Answer a batch; each job hears of its reply as soon as that is whole."""
    version = jobs[0].version
    batch = prompts([job.example for job in jobs], version.encoder, version.model.device, jobs[0].known_task)
    with version.method.separate_rows():
        reply(
            version.model,
            version.method,
            version.encoder,
            batch,
            max(job.decoding.max_tokens for job in jobs),
            lambda served: Steered(jobs, served),
        )


def failed() -> Refusal:
    """What a request hears of an error that is not its own; what the error says is for the log alone."""
    return Refusal(500, "the reply failed; the server's log says why.", code="internal_error")
