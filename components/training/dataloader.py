"""One rank's training batches: rows of its datasets, or read here, collated into the micro-batches of each update."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from components.core.errors import DataError
from components.data.batch import Batch, Example, collate
from components.training.config import RunConfig
from components.training.schedule import ScheduledTask
from components.training.streaming import (
    dataset_name,
    encoded_blocks,
    encoder_for,
    examples,
    training_rows,
    trains_here,
)
from components.training.vision_cache import VisionCache
from components.training.windows import Slice


class TaskDataLoader:
    """Reads a task's dataset on demand, or ahead of time while the worker does something else."""

    def __init__(
        self,
        config: RunConfig,
        schedule: Sequence[ScheduledTask],
        cache: VisionCache | None,
        *,
        rank: int,
        world_size: int,
    ) -> None:
        self.backbone, self.rank = config.backbone, rank
        self.size = config.training.micro_size(world_size)
        own = Slice(rank=rank, world_size=world_size, micro_batch_size=self.size)
        few = [each for each in schedule if trains_here(_rows(each, config), world_size, cache)]
        self._here = {each.task.name: functools.partial(_read_here, each, config, own, cache) for each in few}
        self.accumulation = config.training.accumulation(world_size)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dataloader")
        self._ahead: tuple[str, Iterator[pa.Table], Future[pa.Table | None]] | None = None

    def read_ahead(self, task: str) -> None:
        """Start the task's dataset and fetch its first block in the background; the next reader continues after it.

        Nothing where rows are read here: it takes no time, and an encoder serves one thread at a time.
        """
        if task in self._here or (self._ahead is not None and self._ahead[0] == task):
            return
        blocks = self._blocks(task)
        self._ahead = (task, blocks, self._thread.submit(next, blocks, None))

    def forget_ahead(self) -> None:
        """Drop what was read ahead, when it will not be needed."""
        if self._ahead is not None:
            (_, _, future), self._ahead = self._ahead, None
            future.result()

    def first_updates(self, task: str, count: int) -> Iterator[Batch]:
        """This rank's micro-batches of the first `count` updates, for calibration before `updates`; 0 reads nothing."""
        if count:
            micro_batches = self._micro_batches(self._started(task), skip=0)
            yield from itertools.islice(micro_batches, count * self.accumulation)

    def updates(self, task: str, *, first: int) -> Generator[list[Batch], None, None]:
        """This rank's micro-batches, update by update, from update `first` on."""
        micro_batches = self._micro_batches(self._started(task), skip=first * self.accumulation * self.size)
        while True:
            batches = list(itertools.islice(micro_batches, self.accumulation))
            if len(batches) < self.accumulation:
                raise DataError(f"task {task} ran out of training rows before its last update.")
            yield batches

    def once_more(self, task: str) -> Iterator[Batch]:
        """The task's training batches from the start, for methods that gather statistics at the end."""
        return self._micro_batches(self._blocks(task), skip=0)

    def _blocks(self, task: str) -> Iterator[pa.Table]:
        if task in self._here:
            return self._here[task]()
        return encoded_blocks(dataset_name("train", task, self.rank), batch_size=None)

    def _started(self, task: str) -> Iterator[pa.Table]:
        """The blocks of `task`, including one that was read ahead."""
        if self._ahead is None or self._ahead[0] != task:
            return self._blocks(task)
        (_, blocks, future), self._ahead = self._ahead, None
        first = future.result()
        return iter(()) if first is None else itertools.chain([first], blocks)

    def _micro_batches(self, blocks: Iterator[pa.Table], *, skip: int) -> Iterator[Batch]:
        """Micro-batches in order, without the first `skip` rows."""
        rows = (example for block in _in_order(blocks) for example in examples(block.to_pylist()))
        pad_id = encoder_for(self.backbone).pad_id
        pending: list[Example] = []
        for example in itertools.islice(rows, skip, None):
            pending.append(example)
            if len(pending) == self.size:
                yield collate(pending, pad_id=pad_id, padding_side="right")
                pending = []


def _rows(scheduled: ScheduledTask, config: RunConfig) -> int:
    return scheduled.num_updates * config.training.global_batch_size


def _read_here(
    scheduled: ScheduledTask, config: RunConfig, own: Slice, cache: VisionCache | None
) -> Iterator[pa.Table]:
    return training_rows(
        scheduled.splits,
        config.backbone,
        slice=own,
        epochs=scheduled.num_epochs(config.training.global_batch_size),
        num_rows=_rows(scheduled, config),
        seed=config.seed,
        cache=cache,
        block_rows=own.micro_batch_size,
    ).here()


def _in_order(blocks: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same blocks, after a check that positions only rise: a resumed task skips rows by counting them."""
    last = -1
    for block in blocks:
        positions = block["position"].to_numpy()
        if positions[0] <= last:
            raise DataError(f"Ray Data lost the order: row {positions[0]} came after {last}; give the command again.")
        last = int(positions[-1])
        yield block
