"""Ray Data: one task's shards, streamed in a known order, decoded and tokenised upstream of the workers."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import ray.train
import torch
from ray.data import DataContext, Dataset
from safetensors.torch import load, save

from components.core.location import Place
from components.core.runtime import fast_imports
from components.data.batch import Example, Picture
from components.data.rows import Row, Split, columns_without_pictures, row_from_record
from components.data.shards import Shard, whole_shard
from components.models.config import BackboneConfig
from components.models.pixels import Scale, packed, scale_of
from components.training.pickled import PickledCallable
from components.training.vision_cache import VisionCache
from components.training.windows import WINDOW_GROUPS, Slice, Window, plan_windows, stretches_of

if TYPE_CHECKING:  # transformers is imported where rows are encoded, not by the driver
    from components.models.encoding import Encoder, Prepared

_Groups = dict[int, tuple[pa.Table, list[list[str]] | None]]  # by number in a window: rows, names of their pictures

BLOCK_ROWS = 64
WINDOW_ROWS = 512  # prompts answered at once: enough to sort by length, little to hold


@functools.lru_cache(maxsize=2 * WINDOW_GROUPS)
def _opened(folder: Place, shard: Shard) -> pq.ParquetFile:
    """A shard; open files are kept, because the row groups of a window lie in many shards and reading where they are
    takes longer than reading one of them."""
    return whole_shard(folder, shard)


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
        for number, (position, group, index) in enumerate(wanted):
            table, pictures = tables[group]
            row = row_from_record(table.slice(index, 1).to_pylist()[0])
            if self.cache is None or pictures is None:
                yield position, row, None
                continue
            if number % BLOCK_ROWS == 0:
                self.cache.bring(self._names(wanted[number : number + BLOCK_ROWS], tables))
            yield position, row, [self.cache.picture(name) for name in pictures[index]]

    @staticmethod
    def _names(wanted: Iterable[tuple[int, int, int]], tables: _Groups) -> Iterator[str]:
        """The pictures of these rows."""
        for _, group, index in wanted:
            yield from (tables[group][1] or {index: ()})[index]

    def _read(self, place: tuple[int, int, int]) -> tuple[pa.Table, list[list[str]] | None]:
        """A row group; with a cache, its pictures' names in the place of its pictures."""
        number, shard, group = place
        split = self.splits[number]
        file = _opened(split.path, split.shards[shard])
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


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Rows that a rank reads: their windows, and what is done to them."""

    windows: list[Window]
    loader: Loader

    def dataset(self) -> Dataset:
        """A block at a time, encoded by processes of Ray Data."""
        return _stream(self.windows, self.loader)

    def here(self) -> Iterator[pa.Table]:
        """The same blocks, encoded by this process as they are asked for."""
        return self.loader({"stretch": np.array(stretches_of(self.windows), dtype=object)})


def training_rows(
    splits: Sequence[Split],
    backbone: BackboneConfig,
    *,
    slice: Slice,
    epochs: int,
    num_rows: int,
    seed: int,
    cache: VisionCache | None,
    block_rows: int = BLOCK_ROWS,
) -> Reading:
    """This rank's training examples in order: the first `num_rows` positions of `epochs` shuffled passes over `splits`
    together, `block_rows` in a block."""
    loader = Loader(
        splits=tuple(splits),
        backbone=backbone,
        mode="train",
        slice=slice,
        num_rows=num_rows,
        cache=cache,
        block_rows=block_rows,
    )
    return Reading(windows=plan_windows(splits, epochs=epochs, num_rows=num_rows, seed=seed), loader=loader)


def prompt_rows(
    split: Split, backbone: BackboneConfig, *, slice: Slice, num_rows: int, cache: VisionCache | None
) -> Reading:
    """This rank's share of the first `num_rows` rows in stored order, as prompts to be answered."""
    loader = Loader(splits=(split,), backbone=backbone, mode="prompt", slice=slice, num_rows=num_rows, cache=cache)
    return Reading(windows=plan_windows([split], epochs=1, num_rows=num_rows, seed=None), loader=loader)


def prompts_here(
    split: Split, backbone: BackboneConfig, *, slice: Slice, num_rows: int, cache: VisionCache | None
) -> list[Example]:
    """The same prompts, read by this process at once and held in memory."""
    blocks = prompt_rows(split, backbone, slice=slice, num_rows=num_rows, cache=cache).here()
    return [example for block in blocks for example in examples(block.to_pylist())]


def prompt_windows(
    split: Split, backbone: BackboneConfig, *, slice: Slice, num_rows: int, cache: VisionCache | None
) -> Iterator[list[Example]]:
    """The same prompts, a window at a time, read by this process as they are asked for."""
    blocks = prompt_rows(split, backbone, slice=slice, num_rows=num_rows, cache=cache).here()
    rows = (example for block in blocks for example in examples(block.to_pylist()))
    while window := list(itertools.islice(rows, WINDOW_ROWS)):
        yield window


def fits_a_window(num_rows: int, world_size: int) -> bool:
    """Whether a rank's share of `num_rows` prompts is read whole before its first answer.

    Then Ray Data could do nothing meanwhile, and starting it takes longer than reading a few rows: see `prompts_here`.
    """
    return num_rows <= WINDOW_ROWS * world_size


def trains_here(num_rows: int, world_size: int, cache: VisionCache | None) -> bool:
    """Whether each rank reads its share of `num_rows` training rows by itself: see `Reading.here`.

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
