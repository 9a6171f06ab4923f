"""The next update's batches on their way to the GPU while this one computes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import torch

from components.data.batch import Batch

T = TypeVar("T")


def sent_ahead(updates: Generator[list[Batch], None, None], device: torch.device) -> Generator[list[Batch], None, None]:
    """The same updates, on `device`; each is read, collated and sent while its predecessor is worked on.

    At most one update is under way. What fails in it is raised when it is asked for; closing waits for it. On a CPU
    nothing has to travel, and the thread would take a core from the training.
    """
    if device.type == "cpu":
        yield from updates
        return
    with closing(updates), closing(read_ahead(_sent(updates, device))) as ahead:
        for batches, copied in ahead:
            # The training's stream takes the tensors over: it waits for this copy, not for the next one's, and their
            # memory is not reused before it is done with them.
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for batch in batches:
                for tensor in batch.tensors():
                    tensor.record_stream(current)
            yield batches


def _sent(
    updates: Iterator[list[Batch]], device: torch.device
) -> Generator[tuple[list[Batch], torch.cuda.Event], None, None]:
    """The updates being copied on a stream of their own, and the event that says when they are there.

    Only from pinned memory does a copy run beside the host and the GPU.
    """
    stream = torch.cuda.Stream(device)
    for batches in updates:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            on_device = [batch.pinned().to(device) for batch in batches]
            copied = torch.cuda.Event()
            copied.record(stream)
        yield on_device, copied


def read_ahead(updates: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same updates, each made in a thread while its predecessor is worked on."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="transfer") as thread:
        under_way = thread.submit(_next, updates)
        try:
            while True:
                made = under_way.result()
                if made is None:
                    return
                under_way = thread.submit(_next, updates)
                yield made[0]
        finally:
            under_way.cancel()
            thread.shutdown()  # waits: a generator cannot be closed while it runs
            updates.close()


def _next(updates: Iterator[T]) -> tuple[T] | None:
    """The next one, or None after the last: a thread cannot hand on that its iterator has ended."""
    for update in updates:
        return (update,)
    return None
