"""Pictures opened by the nodes of a Ray cluster: `OrderedMap` through Ray Data. No other data file uses Ray.

Items go out in windows, so that neither they nor the pictures that come back are ever all in memory; a window is one
execution of Ray Data, its blocks come back in order, and the same code writes the same shards as without Ray. Data
goes pickled from process to process. Pictures must be where every node finds them: a shared folder or a URI.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext

from components.core.errors import DataError
from components.core.machine import usable_cpus
from components.core.ray_session import open_ray
from components.data.formats.parallel_map import Given, Made, OrderedMap, chunks

_CHUNK = 16  # items of one block, which one task opens
_WINDOW_CHUNKS = 1024
_WINDOW_BYTES = 1 << 28  # of items that hold pictures themselves


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """`OrderedMap` by the tasks of a running cluster. `make` and the items must be picklable."""

    def __call__(self, make: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
        for window in _windows(items):
            expected = iter(range(len(window)))
            for number, made in _made(make, window):
                if number != next(expected, None):
                    raise DataError(
                        f"Ray Data lost the order: block {number} came out of turn; give the command again."
                    )
                yield from made
            if next(expected, None) is not None:
                raise DataError("Ray Data lost the end of what it was given; give the command again.")


@contextmanager
def ray_cluster(address: str | None) -> Iterator[OrderedMap]:
    """`OrderedMap` on the cluster at `address` (or RAY_ADDRESS), or on one that lives as long as the block."""
    open_ray(address, num_cpus=usable_cpus(), log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield OnRay()
    finally:
        ray.shutdown()


def _windows(items: Iterable[Given]) -> Iterator[list[bytes]]:
    """Pickled chunks of items, as many as may be under way at a time."""
    window: list[bytes] = []
    size = 0
    for chunk in chunks(items, _CHUNK):
        window.append(pickle.dumps(chunk))
        size += len(window[-1])
        if len(window) == _WINDOW_CHUNKS or size >= _WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


def _made(make: Callable[[Given], Made], window: list[bytes]) -> Iterator[tuple[int, list[Made]]]:
    """Number and results of every chunk."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a slow disk is not a stuck pipeline
    context.execution_options.preserve_order = True
    with DataContext.current(context):
        blocks = [{"number": number, "chunk": chunk} for number, chunk in enumerate(window)]
        dataset = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
            partial(_make_per_worker, make=make), batch_size=None, batch_format="pyarrow"
        )
        batches = cast(Iterator[pa.Table], iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow")))
    for batch in batches:
        for number, chunk in zip(batch["number"].to_pylist(), batch["chunk"].to_pylist(), strict=True):
            yield number, pickle.loads(chunk)  # noqa: S301 - written by our own task a moment ago


def _make_per_worker(blocks: pa.Table, make: Callable[[Given], Made]) -> pa.Table:
    """The results of a block's chunks, pickled like them."""
    made = [
        pickle.dumps([make(item) for item in pickle.loads(chunk)])  # noqa: S301 - written by our own driver
        for chunk in blocks["chunk"].to_pylist()
    ]
    return pa.table({"number": blocks["number"], "chunk": pa.array(made, pa.large_binary())})
