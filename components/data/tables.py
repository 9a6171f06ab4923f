"""Tables of instruction data row by row: Parquet files, and Arrow files as Hugging Face's `datasets` leaves them.

A row is an item of a layout of `layouts`, under the names of its columns; its picture is a path, its encoded bytes, or
a struct of `bytes` and `path`. Rows of this project's own schema (`rows`) are understood too. Columns with other names
are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from components.data.json_items import UNREADABLE, Numbered, why_unreadable
from components.data.reports import ItemError
from components.data.storage import Location, reason
from components.errors import DataError

_TALKS = ("conversations", "messages", "instruction", "query")  # one of them says what was asked
_COLUMNS = (
    *("id", "sample_id", "image", "images", "answers"),
    *(*_TALKS, "input", "output", "response", "history", "system"),
)
_ROWS = 32  # rows made Python objects at a time; a picture may have megabytes
_PIECE = 1 << 20  # bytes of a column read at a time


def parquet_rows(location: Location) -> Iterator[Numbered]:
    """Number and item of every row of a Parquet file. Raises `DataError` when it is none, or names no conversation."""
    try:
        with location.filesystem.open_input_file(location.path) as file:
            table = pq.ParquetFile(file, buffer_size=_PIECE)
            columns = _known(table.schema_arrow, location)
            yield from _numbered(table.iter_batches(_ROWS, columns=columns))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{location.shown} is no whole Parquet file ({reason(error)}).") from error


def arrow_rows(location: Location) -> Iterator[Numbered]:
    """The same of an Arrow file, in the stream format, which `datasets` writes, or the file format.

    Memory: one record batch of the file, which `datasets` keeps small for pictures.
    """
    try:
        with location.filesystem.open_input_file(location.path) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            if is_file:
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                batches = reader = pa.ipc.open_stream(file)
            columns = _known(reader.schema, location)
            pieces = (batch.select(columns).slice(start, _ROWS) for batch in batches for start in _starts(batch))
            yield from _numbered(pieces)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{location.shown} is no whole Arrow file ({reason(error)}).") from error


def _starts(batch: pa.RecordBatch) -> range:
    return range(0, batch.num_rows, _ROWS)


def _known(schema: pa.Schema, location: Location) -> list[str]:
    """The columns to read."""
    if not any(name in schema.names for name in _TALKS):
        raise DataError(
            f"{location.shown} has the columns {', '.join(schema.names)}; "
            f"one of {', '.join(_TALKS)} must hold the conversations."
        )
    return [name for name in _COLUMNS if name in schema.names]


def _numbered(batches: Iterable[pa.RecordBatch]) -> Iterator[Numbered]:
    records = (record for batch in batches for record in batch.to_pylist())
    for number, record in enumerate(records, start=1):
        try:
            yield number, _item(record)
        except ItemError as error:
            yield number, error


def _turned(name: str, columns: dict[str, object]) -> list[dict[str, object]]:
    lists = [values for values in columns.values() if isinstance(values, list)]
    if len(lists) != len(columns) or len({len(values) for values in lists}) != 1:
        raise ItemError("wrong field", f"the lists in the column {name!r} must be of one length")
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _item(record: dict[str, object]) -> dict[str, object]:
    """The row without names that mean nothing in it, its turns as a list."""
    item = {"id": record.pop("sample_id"), **record} if "sample_id" in record else dict(record)
    for name in ("conversations", "messages"):
        turns = item.get(name)
        if isinstance(turns, str):
            try:
                item[name] = json.loads(turns)
            except UNREADABLE as error:
                raise ItemError("broken JSON", f"the column {name!r} is not JSON ({why_unreadable(error)})") from error
        elif isinstance(turns, dict):  # a struct of lists, as older `datasets` write a list of structs
            item[name] = _turned(name, turns)
    if "conversations" not in item and "image" in item:
        item["images"] = item.pop("image")  # as the other layouts call it
    return {name: value for name, value in item.items() if value is not None or name == "id"}
