"""Tokens of rows, counted once for each split and kept in the cache.

Nothing here imports a model library when all splits are known.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow.parquet as pq

from components.core.errors import ConfigError, DataError
from components.core.files import write_text
from components.core.fingerprint import code_fingerprint
from components.core.machine import cache_dir
from components.core.options import T, from_plain
from components.core.reading import read_json
from components.data.rows import SCHEMA_SEVERAL, Row, Split, columns_without_pictures, row_from_record
from components.data.shards import parquet
from components.data.tasks import TaskStream
from components.metrics import score
from components.models.config import BackboneConfig
from components.models.source import model_source
from components.training.config import RunConfig
from components.training.streaming import encoder_for
from components.training.windows import group_rows, plan_windows, reached_rows

if TYPE_CHECKING:
    from components.models.encoding import Encoder

COUNTED_ROWS = 256  # tokenised at once: one call for each row would cost as much as the tokens
COUNTED_WHOLE = 20_000  # rows of a split that are all counted, once for every budget: it takes two seconds


@dataclass(frozen=True, kw_only=True)
class SplitLengths:
    """Lengths of one split's rows, in order: of all, or of those that were counted."""

    tokens: list[int]
    """Tokens of the whole conversation for training rows, of the prompt for rows to be answered."""
    replies: list[int]
    """Test splits: tokens of the shortest accepted answer. Training splits: one number, the supervised tokens of the
    longest row."""
    unreachable: list[int]
    """Test splits only: rows, from 0, whose every accepted answer scores 0 even when given word for word."""
    pictures: list[int]
    """How many each row has."""
    refused: list[tuple[int, str, str]]
    """Rows of the split, from 0, with more than the backbone takes, as `Excess` says it; they count 0 tokens."""


def rows_to_count(config: RunConfig, stream: TaskStream) -> dict[str, list[int]]:
    """By digest of a long training split: the rows that the updates reach, where they are fewer than there are.

    Where rows are skipped, which ones are reached depends on the lengths of all. Replay and joint training read splits
    together, and a mixture's segments hold parts of them, so they reach other rows.
    """
    method, training = config.method, config.training
    apart = method.is_trainable and method.data_scope != "union" and not method.stored_samples
    if config.backbone.too_long == "skip" or not apart or stream.mixture is not None:
        return {}
    found: dict[str, list[int]] = {}
    for split in [task.train for task in stream.tasks if task.train.num_rows > COUNTED_WHOLE]:
        num_rows = training.num_updates(split.num_rows) * training.global_batch_size
        if num_rows < split.num_rows:
            windows = plan_windows([split], epochs=1, num_rows=num_rows, seed=config.seed)
            found[split.digest] = _numbers(split, reached_rows(windows, num_rows))
    return found


def _numbers(split: Split, reached: Mapping[tuple[int, int, int], Sequence[int]]) -> list[int]:
    """Rising numbers, in the whole split, of rows that are known by shard and row group."""
    sizes = [size for groups in group_rows(split) for size in groups]
    places = [(0, shard, group) for shard, groups in enumerate(group_rows(split)) for group in range(len(groups))]
    firsts = itertools.accumulate(sizes, initial=0)
    return [first + row for place, first in zip(places, firsts, strict=False) for row in sorted(reached.get(place, ()))]


def measured(
    backbone: BackboneConfig, key: str, split: Split, *, answering: bool, rows: Sequence[int] | None = None
) -> SplitLengths:
    """`measure_split`, kept in the cache; `key` is `encoder_key`'s."""
    kind = "asked" if answering else "taught"
    some = "" if rows is None else f"-{hashlib.sha256(json.dumps([*rows]).encode()).hexdigest()[:16]}"
    path = cache_dir() / "lengths" / f"{split.digest[:32]}-{kind}-{key}{some}.json"
    found = _read(path, SplitLengths)
    if found is not None:
        return found
    lengths = measure_split(encoder_for(backbone), split, answering=answering, rows=rows)
    write_text(path, json.dumps(asdict(lengths)))
    return lengths


def measure_split(
    encoder: Encoder, split: Split, *, answering: bool, rows: Sequence[int] | None = None
) -> SplitLengths:
    """Tokenise every row of `split`, or those with the rising numbers `rows`; raises `DataError` for a row that cannot
    be encoded at all."""
    tokens, replies, unreachable = list[int](), list[int](), list[int]()
    pictures, refused = list[int](), list[tuple[int, str, str]]()
    longest: tuple[int, Row] | None = None
    given = split.rows(with_image=False) if rows is None else chosen_rows(split, rows)
    numbers = itertools.count() if rows is None else rows
    for number, (row, size) in zip(numbers, _sized(encoder, given, answering=answering), strict=False):
        pictures.append(len(row.pictures))
        tokens.append(size)
        if not size:
            excess = encoder.excess(row)
            assert excess is not None, f"row {row.sample_id} has no token"
            refused.append((number, excess.found, excess.taken))
            replies += [0] if answering else []
            continue
        if not answering:
            if longest is None or size > longest[0]:
                longest = size, row
            continue
        if row.metric == "constraints":  # its answers are conditions, not texts to be replied
            replies.append(0)
            continue
        said = [encoder.reply_ids(row, answer) for answer in dict.fromkeys(row.answers)]
        replies.append(min(len(ids) for ids in said))
        if not any(score(row.metric, encoder.decode(ids), row.answers) for ids in said):
            unreachable.append(number)
    if longest is not None:
        replies = [encoder.num_labels(longest[1])]
    return SplitLengths(tokens=tokens, replies=replies, unreachable=unreachable, pictures=pictures, refused=refused)


def _sized(encoder: Encoder, rows: Iterator[Row], *, answering: bool) -> Iterator[tuple[Row, int]]:
    """Each row with its tokens; 0 for a row with more than the backbone takes."""
    while some := [*itertools.islice(rows, COUNTED_ROWS)]:
        sizes = iter(encoder.nums_tokens([row for row in some if encoder.excess(row) is None], answering=answering))
        yield from ((row, next(sizes) if encoder.excess(row) is None else 0) for row in some)


def chosen_rows(split: Split, numbers: Sequence[int]) -> Iterator[Row]:
    """The rows of `split` with these rising numbers, without pictures; only their row groups are read."""
    wanted, first = deque(numbers), 0
    columns = columns_without_pictures(SCHEMA_SEVERAL.names)
    for shard, groups in enumerate(group_rows(split)):
        file: pq.ParquetFile | None = None
        for group, size in enumerate(groups):
            here: list[int] = []
            while wanted and wanted[0] < first + size:
                here.append(wanted.popleft() - first)
            first += size
            if here:
                file = file or split.shard_without_pictures(shard)
                with parquet(split.shard_paths()[shard]):
                    records = file.read_row_group(group, columns=columns).take(here).to_pylist()
                for record in records:
                    yield row_from_record({"image": None, **record})


def template_of(backbone: BackboneConfig, key: str) -> tuple[str, str]:
    path = cache_dir() / "lengths" / f"template-{key}.json"
    found = _read(path, dict[Literal["name", "why"], str])
    if found is None or len(found) != 2:
        name, why = encoder_for(backbone).template
        found = {"name": name, "why": why}
        write_text(path, json.dumps(found))
    return found["name"], found["why"]


def _read(path: Path, kind: type[T]) -> T | None:
    """What was counted before; None where it is missing or damaged, and then it is counted again."""
    try:
        return from_plain(kind, read_json(path, DataError, ""), path.name)
    except (DataError, ConfigError):
        return None


def encoder_key(backbone: BackboneConfig) -> str:
    """Identity of how texts become tokens: code, libraries, template, and the files of the tokenizer."""
    digest = hashlib.sha256(code_fingerprint().encode())
    for package in ("transformers", "tokenizers"):
        digest.update(importlib.metadata.version(package).encode())
    digest.update(f"{backbone.name} {backbone.template} {backbone.vision_layer}".encode())
    for path in model_source(backbone).tokenizer_files():
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
