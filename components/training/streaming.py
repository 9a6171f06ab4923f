"""Ray Data: one task's shards, streamed in a known order, decoded and tokenised upstream of the workers.

Order. An epoch permutes row groups with a seed, cuts them into windows of `WINDOW_GROUPS` groups and permutes the
rows inside each window: sequential reads, a shuffle over about a thousand rows (over everything for small tasks), and
one fixed order per (seed, epoch). A position in that order is a global sample count, so a checkpoint's position is one
number.

Split over workers. Rank r of W takes the positions whose micro-batch index is r modulo W, so that an update sees the
same samples whatever W is. Each rank has its own dataset: nothing is dropped, and nothing depends on scheduling.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import ray.train
import torch
from ray.data import DataContext, Dataset
from safetensors.torch import load, save

from components.core.runtime import fast_imports
from components.data.batch import Example, Picture
from components.data.rows import ROW_GROUP_ROWS, Row, Split, columns_without_pictures, row_from_record
from components.models.config import BackboneConfig
from components.models.pixels import Scale, packed, scale_of
from components.training.pickled import PickledCallable
from components.training.vision_cache import VisionCache

if TYPE_CHECKING:  # transformers is imported where rows are encoded, not by the driver
    from components.models.encoding import Encoder, Prepared

WINDOW_GROUPS = 16
BLOCK_ROWS = 64
WINDOW_ROWS = 512  # prompts answered at once: enough to sort by length, little to hold


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Which samples of an endless ordered sequence a rank gets: micro-batches r, r + W, r + 2W, ..."""

    rank: int = 0
    world_size: int = 1
    micro_batch_size: int = 1

    def takes(self, position: int) -> bool:
        return (position // self.micro_batch_size) % self.world_size == self.rank


@dataclass(frozen=True, kw_only=True)
class Window:
    """Some row groups of an epoch, in reading order, and the position of the window's first row."""

    start: int
    groups: tuple[tuple[int, int, int], ...]  # (split index, shard index, row group index)
    group_rows: tuple[int, ...]
    num_rows: int
    shuffle_seed: tuple[int, ...] | None

    def rows(self, num_rows: int) -> list[tuple[int, int, int]]:
        """(position, which of `groups`, row in it) of every row below position `num_rows`, in reading order."""
        order = np.arange(self.num_rows)
        if self.shuffle_seed is not None:
            order = np.random.default_rng(list(self.shuffle_seed)).permutation(self.num_rows)
        order = order[: num_rows - self.start]
        starts = np.cumsum([0, *self.group_rows])
        groups = np.searchsorted(starts, order, side="right") - 1
        places = zip(groups.tolist(), (order - starts[groups]).tolist(), strict=True)
        return [(self.start + index, group, row) for index, (group, row) in enumerate(places)]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive windows that one Ray Data task reads: short windows would cost more processes than they keep busy."""

    windows: tuple[Window, ...]


def plan_windows(splits: Sequence[Split], *, epochs: int, num_rows: int, seed: int | None) -> list[Window]:
    """Windows covering the first `num_rows` positions of `epochs` passes over `splits`, which are read as one set;
    `seed` None keeps the stored order."""
    groups = [
        (number, shard, group, rows)
        for number, split in enumerate(splits)
        for shard, sizes in enumerate(group_rows(split))
        for group, rows in enumerate(sizes)
    ]
    windows: list[Window] = []
    start = 0
    for epoch in range(epochs):
        order = (
            np.arange(len(groups)) if seed is None else np.random.default_rng([seed, epoch]).permutation(len(groups))
        )
        for first in range(0, len(groups), WINDOW_GROUPS):
            chosen = [groups[index] for index in order[first : first + WINDOW_GROUPS]]
            rows = sum(size for *_, size in chosen)
            windows.append(
                Window(
                    start=start,
                    groups=tuple((number, shard, group) for number, shard, group, _ in chosen),
                    group_rows=tuple(size for *_, size in chosen),
                    num_rows=rows,
                    shuffle_seed=None if seed is None else (seed, epoch, first),
                )
            )
            start += rows
    return [window for window in windows if window.start < num_rows]


def group_rows(split: Split) -> tuple[tuple[int, ...], ...]:
    """Rows of each row group of each shard."""
    return _group_rows(tuple(split.shard_paths()), split.digest)


@functools.lru_cache(maxsize=64)
def _group_rows(paths: tuple[Path, ...], digest: str) -> tuple[tuple[int, ...], ...]:
    """`digest` tells splits apart that lay in one folder one after the other.

    A plan asks for them several times: for each rank, for the features, for the datasets.
    """
    found = (pq.read_metadata(path) for path in paths)
    return tuple(tuple(each.row_group(group).num_rows for group in range(each.num_row_groups)) for each in found)


@functools.lru_cache(maxsize=2 * WINDOW_GROUPS)
def _opened(path: Path, sha256: str) -> pq.ParquetFile:
    """A shard; open files are kept, because the row groups of a window lie in many shards and reading where they are
    takes longer than reading one of them."""
    return pq.ParquetFile(path)


def reached_rows(windows: Sequence[Window], num_rows: int) -> dict[tuple[int, int, int], list[int]]:
    """By (split, shard, row group): the rows of that group that positions below `num_rows` reach."""
    reached: dict[tuple[int, int, int], set[int]] = {}
    for window in windows:
        for _, group, row in window.rows(num_rows):
            reached.setdefault(window.groups[group], set()).add(row)
    return {group: sorted(rows) for group, rows in reached.items()}


def stretches_of(windows: Sequence[Window]) -> list[Stretch]:
    """The same windows in the same order, joined while together they hold no more rows than a full one."""
    joined: list[list[Window]] = []
    rows = 0
    for window in windows:
        rows += window.num_rows
        if not joined or rows > WINDOW_GROUPS * ROW_GROUP_ROWS:
            joined.append([])
            rows = window.num_rows
        joined[-1].append(window)
    return [Stretch(windows=tuple(each)) for each in joined]


@dataclass(frozen=True, kw_only=True)
class Loader:
    """The upstream work on windows: read, order, keep this rank's rows, encode. Runs in Ray Data tasks."""

    splits: tuple[Split, ...]
    backbone: BackboneConfig
    mode: str  # "train" (labels on answers) or "prompt" (to be answered)
    slice: Slice
    num_rows: int
    cache: VisionCache | None = None  # of the pictures' features; None: pictures are decoded
    block_rows: int = BLOCK_ROWS

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        encoder = encoder_for(self.backbone)
        for stretch in batch["stretch"]:
            for window in stretch.windows:
                yield from self._blocks_of(window, encoder)

    def _blocks_of(self, window: Window, encoder: Encoder) -> Iterator[pa.Table]:
        pending: list[dict[str, object]] = []
        for position, row, pictures in self._rows_of(window):
            example = encode_row(encoder, row, mode=self.mode, pictures=pictures)
            scale = scale_of(encoder.family.files.image_processor)
            pending.append(_record_of(position, example, getattr(torch, self.backbone.dtype), scale))
            if len(pending) == self.block_rows:
                yield pa.Table.from_pylist(pending, schema=ENCODED_SCHEMA)
                pending = []
        if pending:
            yield pa.Table.from_pylist(pending, schema=ENCODED_SCHEMA)

    def _rows_of(self, window: Window) -> Iterator[tuple[int, Row, list[Prepared] | None]]:
        """(position, row, its pictures from the cache) of this rank's rows, in the window's order."""
        wanted = [place for place in window.rows(self.num_rows) if self.slice.takes(place[0])]
        # Only groups with a wanted row are read: the cache knows no pictures of the others.
        tables = {group: self._read(window.groups[group]) for group in sorted({group for _, group, _ in wanted})}
        for position, group, index in wanted:
            table, pictures = tables[group]
            row = row_from_record(table.slice(index, 1).to_pylist()[0])
            if self.cache is None or pictures is None:
                yield position, row, None
            else:
                yield position, row, [self.cache.picture(name) for name in pictures[index]]

    def _read(self, place: tuple[int, int, int]) -> tuple[pa.Table, list[list[str]] | None]:
        """A row group; with a cache, its pictures' names in the place of its pictures."""
        number, shard, group = place
        split = self.splits[number]
        file = _opened(split.path / split.shards[shard].file, split.shards[shard].sha256)
        if self.cache is None:
            return file.read_row_group(group), None
        table = file.read_row_group(group, columns=columns_without_pictures(file.schema_arrow.names))
        table = table.append_column("image", pa.nulls(table.num_rows, pa.binary()))
        return table, self.cache.pictures(split, shard, group)


ENCODED_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("sample_id", pa.string()),
        ("instruction", pa.string()),
        ("input_ids", pa.binary()),  # int32
        ("labels", pa.binary()),  # int32
        ("weights", pa.binary()),  # float32, or null where all are 1
        ("pictures", pa.list_(pa.binary())),  # each a safetensors file of its tensors
        ("picture_tokens", pa.list_(pa.int32())),
    ]
)


@functools.lru_cache(maxsize=4)
def encoder_for(config: BackboneConfig) -> Encoder:
    """The encoder of this process, built once: that reads tokenizer files."""
    with fast_imports():
        from components.models.encoding import build_encoder

    return build_encoder(config)


def encode_row(encoder: Encoder, row: Row, *, mode: str, pictures: Sequence[Prepared] | None) -> Example:
    """Encode one row; `pictures` come from the vision cache, None: the row's own are decoded."""
    if mode == "train":
        return encoder.training_example(row, pictures=pictures)
    return encoder.prompt_example(row, pictures=pictures)


def dataset_name(split: str, task: str, rank: int) -> str:
    """Name of a rank's dataset. Ray Data names a log file by it, so it has no character with a meaning in paths."""
    return f"{split}-{re.sub(r'[^A-Za-z0-9_-]', '_', task)}-{hashlib.sha256(task.encode()).hexdigest()[:8]}-{rank}"


def training_dataset(
    splits: Sequence[Split],
    backbone: BackboneConfig,
    *,
    slice: Slice,
    epochs: int,
    num_rows: int,
    seed: int,
    cache: VisionCache | None,
) -> Dataset:
    """This rank's encoded training examples in order: the first `num_rows` positions of `epochs` shuffled passes over
    `splits` together."""
    loader = Loader(splits=tuple(splits), backbone=backbone, mode="train", slice=slice, num_rows=num_rows, cache=cache)
    return _stream(plan_windows(splits, epochs=epochs, num_rows=num_rows, seed=seed), loader)


def training_here(
    splits: Sequence[Split],
    backbone: BackboneConfig,
    *,
    slice: Slice,
    epochs: int,
    num_rows: int,
    seed: int,
    cache: VisionCache | None,
) -> Iterator[pa.Table]:
    """The blocks of `training_dataset`, read by this process as they are asked for, a micro-batch each."""
    loader = Loader(
        splits=tuple(splits),
        backbone=backbone,
        mode="train",
        slice=slice,
        num_rows=num_rows,
        cache=cache,
        block_rows=slice.micro_batch_size,
    )
    return _blocks_here(plan_windows(splits, epochs=epochs, num_rows=num_rows, seed=seed), loader)


def prompt_dataset(
    split: Split, backbone: BackboneConfig, *, slice: Slice, num_rows: int, cache: VisionCache | None
) -> Dataset:
    """This rank's share of the first `num_rows` rows in stored order, as prompts to be answered."""
    windows = plan_windows([split], epochs=1, num_rows=num_rows, seed=None)
    return _stream(windows, _prompt_loader(split, backbone, slice=slice, num_rows=num_rows, cache=cache))


def prompts_here(
    split: Split, backbone: BackboneConfig, *, slice: Slice, num_rows: int, cache: VisionCache | None
) -> list[Example]:
    """What `prompt_dataset` gives, read by this process at once and held in memory."""
    windows = plan_windows([split], epochs=1, num_rows=num_rows, seed=None)
    loader = _prompt_loader(split, backbone, slice=slice, num_rows=num_rows, cache=cache)
    return [example for block in _blocks_here(windows, loader) for example in examples(block.to_pylist())]


def prompt_windows(
    split: Split, backbone: BackboneConfig, *, slice: Slice, num_rows: int, cache: VisionCache | None
) -> Iterator[list[Example]]:
    """What `prompt_dataset` gives, a window at a time, read by this process as they are asked for."""
    windows = plan_windows([split], epochs=1, num_rows=num_rows, seed=None)
    blocks = _blocks_here(windows, _prompt_loader(split, backbone, slice=slice, num_rows=num_rows, cache=cache))
    rows = (example for block in blocks for example in examples(block.to_pylist()))
    while window := list(itertools.islice(rows, WINDOW_ROWS)):
        yield window


def _blocks_here(windows: Sequence[Window], loader: Loader) -> Iterator[pa.Table]:
    return loader({"stretch": np.array(stretches_of(windows), dtype=object)})


def _prompt_loader(
    split: Split, backbone: BackboneConfig, *, slice: Slice, num_rows: int, cache: VisionCache | None
) -> Loader:
    return Loader(splits=(split,), backbone=backbone, mode="prompt", slice=slice, num_rows=num_rows, cache=cache)


def fits_a_window(num_rows: int, world_size: int) -> bool:
    """Whether a rank's share of `num_rows` prompts is read whole before its first answer.

    Then Ray Data could do nothing meanwhile, and starting it takes longer than reading a few rows: see `prompts_here`.
    """
    return num_rows <= WINDOW_ROWS * world_size


def trains_here(num_rows: int, world_size: int, cache: VisionCache | None) -> bool:
    """Whether each rank reads its share of `num_rows` training rows by itself: see `training_here`.

    Few rows whose pictures' features are cached cost a millisecond each, and Ray Data's processes ten seconds of CPU
    time. Pictures that must be decoded are left to other processes, beside the updates.
    """
    return cache is not None and fits_a_window(num_rows, world_size)


def encoded_blocks(name: str, *, batch_size: int | None) -> Iterator[pa.Table]:
    """Tables of `ENCODED_SCHEMA` from a dataset of the run, on a Train worker; `batch_size` None takes whole blocks."""
    shard = ray.train.get_dataset_shard(name)
    assert shard is not None, f"the run has no dataset {name}"
    for block in shard.iter_batches(
        batch_size=batch_size,  # type: ignore[arg-type]  (None is allowed, its annotation forgets it)
        batch_format="pyarrow",
        prefetch_batches=2,
    ):
        assert isinstance(block, pa.Table)
        yield block


def examples(records: Iterable[dict[str, Any]]) -> Iterator[Example]:
    """Rows of `ENCODED_SCHEMA`, as a worker gets them, back to `Example`s."""
    return map(_example_of, records)


def _stream(windows: list[Window], loader: Loader) -> Dataset:
    context = DataContext.get_current().copy()
    context.execution_no_progress_timeout_s = -1  # a slow consumer is not a stuck pipeline
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with DataContext.current(context):
        stretches = stretches_of(windows)
        items = ray.data.from_items([{"stretch": each} for each in stretches], override_num_blocks=len(stretches))
        return items.map_batches(
            PickledCallable(loader),  # type: ignore[arg-type]  (a callable that yields tables, which Ray Data takes)
            batch_size=1,
            batch_format="numpy",
            zero_copy_batch=False,
        )


def _record_of(position: int, example: Example, dtype: torch.dtype, scale: Scale | None) -> dict[str, object]:
    return {
        "position": position,
        "sample_id": example.sample_id,
        "instruction": example.instruction,
        "input_ids": example.input_ids.to(torch.int32).numpy().tobytes(),
        "labels": example.labels.to(torch.int32).numpy().tobytes(),
        "weights": None if example.weights is None else example.weights.numpy().tobytes(),
        "pictures": [save(_as(dtype, packed(picture.tensors, scale))) for picture in example.pictures],
        "picture_tokens": [picture.num_tokens for picture in example.pictures],
    }


def _as(dtype: torch.dtype, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Floating-point tensors as `dtype`, which halves what travels to a bfloat16 model; each in one piece."""
    return {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in tensors.items()
    }


def _example_of(record: dict[str, Any]) -> Example:
    weights = record["weights"]
    pictures = zip(record["pictures"], record["picture_tokens"], strict=True)
    return Example(
        sample_id=str(record["sample_id"]),
        instruction=str(record["instruction"]),
        input_ids=_ids_from(record["input_ids"]),
        labels=_ids_from(record["labels"]),
        weights=None if weights is None else torch.frombuffer(bytearray(weights), dtype=torch.float32),
        pictures=tuple(Picture(tensors=load(tensors), num_tokens=int(count)) for tensors, count in pictures),
    )


def _ids_from(value: object) -> torch.Tensor:
    assert isinstance(value, bytes)
    return torch.frombuffer(bytearray(value), dtype=torch.int32).long()
