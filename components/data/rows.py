"""One sample = one row: the Parquet schema that every task, generated or real, is written to, and its manifest.

Layout of one split on disk: `<split dir>/part-00000.parquet ... manifest.json`. The manifest carries counts and
SHA-256 checksums; `open_split` is the only door to a split and `verify_split` proves it whole.

A row's first picture is in the columns `image`, `width` and `height`. Further ones are in `more_images`, a column that
only splits with such rows have: all others keep their bytes, and what an older version prepared stays readable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import ConfigError, DataError
from components.core.files import file_sha256, whole_folder
from components.core.location import Place
from components.core.options import from_plain
from components.core.reading import is_plain_name, read_object, understood
from components.data.shards import (
    PREPARE_AGAIN,
    Shard,
    batches,
    shard_without_pictures,
    verify_shards,
    whole_shard,
)

FORMAT = "littoral-rows/1"
FORMAT_SEVERAL = "littoral-rows/2"  # of a split with the column MORE, which an older version would overlook
IMAGE_TOKEN = "<image>"  # LLaVA's placeholder: one for each picture of a row, in their order

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("image", pa.binary()),  # encoded bytes (PNG, JPEG, ...) or null
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("conversations", pa.string()),  # JSON: [{"from": "human" | "gpt", "value": str, "weight"?: float}, ...]
        ("answers", pa.list_(pa.string())),  # accepted answers of the last turn
        ("metric", pa.string()),  # key of components.metrics.SCORERS
        ("source", pa.string()),  # where the row came from: package, version, row id
    ]
)

MORE = "more_images"
_MORE_FIELDS = [("bytes", pa.binary()), ("width", pa.int32()), ("height", pa.int32())]
SCHEMA_SEVERAL = SCHEMA.append(pa.field(MORE, pa.list_(pa.struct(_MORE_FIELDS))))  # null where a row has none

MANIFEST = "manifest.json"
ROW_GROUP_ROWS = 64  # small row groups: the windowed shuffle reads whole groups
SHARD_ROWS = 1024
_TEXT = json.JSONEncoder(ensure_ascii=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One turn of a conversation; `speaker` is "human" or "gpt" (LLaVA's words).

    `weight` multiplies the loss of every token of an answer: 1 for an ordinary one, 0 for one that is only context.
    """

    speaker: str
    text: str
    weight: float = 1.0


class RowPicture(NamedTuple):
    """An encoded picture of a row and its size in pixels as it is learned.

    `data` is None in rows that were read without their pictures; sizes are None where nobody has measured them.
    """

    data: bytes | None
    width: int | None
    height: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sample. `image` is None for text-only rows; then `width` and `height` are None too.

    `more_images` has what follows the first picture; `pictures` has all of them.
    """

    sample_id: str
    task: str
    split: str
    turns: tuple[Turn, ...]
    answers: tuple[str, ...]
    metric: str
    source: str
    image: bytes | None = None
    width: int | None = None
    height: int | None = None
    more_images: tuple[RowPicture, ...] = ()

    @property
    def instruction(self) -> str:
        """First human turn without picture placeholders: what routed methods compare."""
        return plain_instruction(self.turns[0].text)

    @property
    def pictures(self) -> tuple[RowPicture, ...]:
        """All pictures, in the order of their placeholders."""
        if self.image is None and self.width is None:
            return self.more_images
        return RowPicture(self.image, self.width, self.height), *self.more_images

    @property
    def images(self) -> list[bytes]:
        """The pictures that were read, encoded as files."""
        return [picture.data for picture in self.pictures if picture.data is not None]


def plain_instruction(text: str) -> str:
    """A human turn without picture placeholders."""
    return text.replace(IMAGE_TOKEN, "").strip()


def instruction_of(conversations: str) -> str:
    """The instruction of a row, straight from its `conversations` column."""
    return plain_instruction(json.loads(conversations)[0]["value"])


def row_to_record(row: Row) -> dict[str, object]:
    """A `Row` as one record of `SCHEMA`, or of `SCHEMA_SEVERAL` where it has several pictures."""
    turns = [
        # written only where it is not 1, so that rows without weights keep their bytes and their digest
        {"from": turn.speaker, "value": turn.text, **({"weight": turn.weight} if turn.weight != 1.0 else {})}
        for turn in row.turns
    ]
    same = {name: getattr(row, name) for name in SCHEMA.names if name != "conversations"}
    more = [{"bytes": each.data, "width": each.width, "height": each.height} for each in row.more_images]
    return {**same, "conversations": _TEXT.encode(turns), **({MORE: more} if more else {})}


def row_from_record(record: dict[str, object]) -> Row:
    """The inverse of `row_to_record`."""
    turns = json.loads(str(record["conversations"]))
    image, width, height = record["image"], record["width"], record["height"]
    answers, more = record["answers"], record.get(MORE) or []
    if not (image is None or isinstance(image, bytes)) or not isinstance(answers, Sequence) or not _are_pictures(more):
        raise DataError(f"row {record['sample_id']} is not what prepare.py writes; prepare the data again.")
    return Row(
        **{name: str(record[name]) for name in ("sample_id", "task", "split", "metric", "source")},
        turns=tuple(
            Turn(speaker=turn["from"], text=turn["value"], weight=float(turn.get("weight", 1))) for turn in turns
        ),
        answers=tuple(str(answer) for answer in answers),
        image=image,
        width=width if isinstance(width, int) else None,
        height=height if isinstance(height, int) else None,
        more_images=tuple(RowPicture(each.get("bytes"), each["width"], each["height"]) for each in more),
    )


def _are_pictures(more: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(more, list) and all(
        isinstance(each, dict) and {"width", "height"} <= each.keys() for each in more
    )


def columns_without_pictures(names: Iterable[str]) -> list[str]:
    """The columns of `names`, as Parquet names them, that hold everything of a row but its encoded pictures."""
    sizes = [f"{MORE}.list.element.width", f"{MORE}.list.element.height"]
    return [part for name in names if name != "image" for part in (sizes if name == MORE else [name])]


@dataclass(frozen=True, kw_only=True)
class Split:
    """A written split: its folder and what its manifest says."""

    path: Place
    task: str
    split: str
    shards: tuple[Shard, ...]
    card: dict[str, object] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 over the shards' checksums: the identity of the data, wherever it is stored."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def shard_paths(self) -> list[Place]:
        return [self.path / shard.file for shard in self.shards]

    def whole_shard(self, number: int) -> pq.ParquetFile:
        """A shard to read everything of; raises `DataError`."""
        return whole_shard(self.path, self.shards[number])

    def shard_without_pictures(self, number: int) -> pq.ParquetFile:
        """A shard to read other columns of; raises `DataError`."""
        return shard_without_pictures(self.path, self.shards[number])

    def rows(self, *, with_image: bool = True, limit: int | None = None) -> Iterator[Row]:
        """Every row in order, or the first `limit`; memory stays at one row group, without pictures at one shard."""
        names = SCHEMA_SEVERAL.names  # a name that a file does not have is passed over
        columns = names if with_image else columns_without_pictures(names)
        left = self.num_rows if limit is None else limit
        for number, path in enumerate(self.shard_paths()):
            file = (self.whole_shard if with_image else self.shard_without_pictures)(number)
            for batch in batches(file, path, ROW_GROUP_ROWS if with_image else SHARD_ROWS, columns):
                with understood(path, DataError, PREPARE_AGAIN):
                    records = batch.to_pylist()[:left]
                    rows = [row_from_record({"image": None, **record}) for record in records]
                yield from rows
                left -= len(records)
                if left <= 0:
                    return

    def column(self, name: str) -> Iterator[object]:
        """One column in order, without reading the others (no image bytes)."""
        for number, path in enumerate(self.shard_paths()):
            for batch in batches(self.shard_without_pictures(number), path, SHARD_ROWS, [name]):
                yield from batch.column(0).to_pylist()


def write_split(
    rows: Iterable[Row], path: Place, *, task: str, split: str, card: dict[str, object] | None = None
) -> Split:
    """Stream `rows` into the folder `path`, which is replaced or appears as a whole, or not at all."""
    with whole_folder(path, replace=True, last=MANIFEST) as partial:
        shards: list[Shard] = []
        several, pending = False, iter(rows)
        while not shards or shards[-1].rows == SHARD_ROWS:
            shard, several = _write_shard(
                islice(pending, SHARD_ROWS), partial / f"part-{len(shards):05d}.parquet", several=several
            )
            if shard.rows or not shards:
                shards.append(shard)
            else:
                (partial / shard.file).unlink()
                break
        if several:
            shards = [_with_more(shard, partial) for shard in shards]
        manifest = {
            "format": FORMAT_SEVERAL if several else FORMAT,
            "task": task,
            "split": split,
            "rows": sum(shard.rows for shard in shards),
            "shards": [asdict(shard) for shard in shards],
            "card": card or {},
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return open_split(path)


def _write_shard(rows: Iterator[Row], path: Path, *, several: bool) -> tuple[Shard, bool]:
    """One Parquet file of `rows`, and whether it has the column `MORE`, as it must with `several`.

    Memory stays at one row group, which is what pictures make large. So the first row of several pictures may come
    when earlier groups are on disk without the column; they are copied then, once in a shard.
    """
    count, schema = 0, SCHEMA_SEVERAL if several else SCHEMA
    writer = pq.ParquetWriter(path, schema, compression="zstd")
    try:
        while records := [row_to_record(row) for row in islice(rows, ROW_GROUP_ROWS)]:
            if schema is SCHEMA and any(MORE in record for record in records):
                writer.close()
                writer, schema = _widened(path), SCHEMA_SEVERAL
            writer.write_table(pa.Table.from_pylist(records, schema=schema), row_group_size=ROW_GROUP_ROWS)
            count += len(records)
        if not count:
            writer.write_table(schema.empty_table())
    finally:
        writer.close()
    return _shard(path, count), schema is SCHEMA_SEVERAL


def _widened(path: Path) -> pq.ParquetWriter:
    """A writer of a file with the column `MORE`, begun with the rows of the file in `path`, which has not got it."""
    earlier, column = path.with_suffix(".earlier"), SCHEMA_SEVERAL.field(MORE)
    path.rename(earlier)
    file, writer = pq.ParquetFile(earlier), pq.ParquetWriter(path, SCHEMA_SEVERAL, compression="zstd")
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        table = table.append_column(column, pa.nulls(table.num_rows, column.type))
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    earlier.unlink()
    return writer


def _with_more(shard: Shard, folder: Path) -> Shard:
    """The shard, with the column `MORE`: all shards of a split have the same columns."""
    path = folder / shard.file
    if MORE in pq.read_schema(path).names:
        return shard
    _widened(path).close()
    return _shard(path, shard.rows)


def _shard(path: Path, count: int) -> Shard:
    return Shard(file=path.name, rows=count, bytes=path.stat().st_size, sha256=file_sha256(path))


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """What a split's manifest must hold beside its format."""

    task: str
    split: str
    shards: tuple[Shard, ...]
    card: dict[str, Any]


def open_split(path: Place) -> Split:
    """Read a split's manifest; raises `DataError` when it is missing or of another format."""
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise DataError(f"{path} has no manifest.json; prepare the stream first (pipelines/prepare.py).")
    manifest = read_object(manifest_path, DataError, PREPARE_AGAIN)
    if manifest.get("format") not in (FORMAT, FORMAT_SEVERAL):
        given = manifest.get("format")
        raise DataError(f"{manifest_path} has format {given!r:.80}, expected {FORMAT!r}; {PREPARE_AGAIN}.")
    try:
        facts = {name: manifest[name] for name in ("task", "split", "shards", "card")}
        whole = from_plain(_Manifest, facts, "manifest")
    except (KeyError, ConfigError) as error:
        raise DataError(f"{manifest_path} is not a readable manifest ({error}); {PREPARE_AGAIN}.") from error
    for shard in whole.shards:
        if not is_plain_name(shard.file):
            raise DataError(f"{manifest_path} names the shard {shard.file!r:.80}; a shard must be beside its manifest.")
    found = path.resolve() if isinstance(path, Path) else path
    return Split(path=found, task=whole.task, split=whole.split, shards=whole.shards, card=dict(whole.card))


def verify_split(split: Split) -> None:
    """Compare every shard with its checksum and row count; raises `DataError` naming the first that differs."""
    verify_shards(split.path, split.shards)
