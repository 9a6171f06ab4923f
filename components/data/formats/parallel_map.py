"""A function applied to a stream of items, several at once, with the results in the items' order and few in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from components.core.errors import ConfigError

Given = TypeVar("Given")
Made = TypeVar("Made")

_CHUNK = 4  # items a thread takes at once: handing one over costs as much as a small row
_AHEAD = 2  # chunks read ahead per thread


class OrderedMap(Protocol):
    """Yields `make(item)` of every item, in their order; `make` must not depend on the order of its calls."""

    def __call__(self, make: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]: ...


@dataclass(frozen=True, kw_only=True)
class Threads:
    """`OrderedMap` by threads: decoding a picture releases Python's lock. With one worker, the caller's own thread."""

    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; give at least 1.")

    def __call__(self, make: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
        if self.workers == 1:
            yield from map(make, items)
            return

        def made(chunk: list[Given]) -> list[Made]:
            return [make(item) for item in chunk]

        waiting: deque[Future[list[Made]]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for chunk in chunks(items, _CHUNK):
                waiting.append(pool.submit(made, chunk))
                if len(waiting) >= self.workers * _AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # nobody wants them after an error or a signal


SERIAL = Threads()


def chunks(items: Iterable[Given], size: int) -> Iterator[list[Given]]:
    """Lists of `size` items, the last one perhaps shorter."""
    pending = iter(items)
    while chunk := list(islice(pending, size)):
        yield chunk
