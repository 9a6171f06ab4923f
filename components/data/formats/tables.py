"""Tables of instruction data row by row: Parquet files, and Arrow files as Hugging Face's `datasets` writes them.

A row is an item of a layout of `layouts`, under the names of its columns; a picture is a path, its encoded bytes, or a
struct of `bytes` and `path`, and a list of these is several. Rows of this project's own schema (`rows`) are understood
too. Other columns are not read; `unread_columns` names them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import DataError
from components.core.file_systems import reason
from components.core.location import Location
from components.data.formats.fields import FIELDS, PICTURES, TALKS, is_content
from components.data.formats.json_items import Numbered, parsed
from components.data.problems import ItemError
from components.data.rows import MORE, SCHEMA_SEVERAL

_COLUMNS = frozenset(("id", "sample_id", "answers")) | FIELDS
_OWN = frozenset(SCHEMA_SEVERAL.names)
# pyarrow turns dates, decimals and names into Python objects, which has errors of its own.
TABLE_ERRORS = (OSError, pa.ArrowException, ValueError, KeyError, TypeError, OverflowError, MemoryError, SystemError)
_ROWS = 32  # rows made Python objects at a time; a picture may have megabytes
_PIECE = 1 << 20  # bytes of a column read at a time
_MAGIC = b"PAR1"  # at both ends of a Parquet file


def parquet_rows(location: Location) -> Iterator[Numbered]:
    """Number and item of every row of a Parquet file. Raises `DataError` for other files and missing columns."""
    with _parquet(location) as table:
        columns = _known(table.schema_arrow, location)
        yield from _numbered(table.iter_batches(_ROWS, columns=columns))


def arrow_rows(location: Location) -> Iterator[Numbered]:
    """The same of an Arrow file, in the stream format, which `datasets` writes, or the file format.

    Memory: one record batch of the file, which `datasets` keeps small for pictures.
    """
    with _arrow(location) as (file, reader):
        if isinstance(reader, pa.RecordBatchFileReader):
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            batches = iter(reader)
        columns = _known(reader.schema, location)
        pieces = (batch.select(columns).slice(start, _ROWS) for batch in batches for start in _starts(batch))
        yield from _numbered(pieces)
        if isinstance(reader, pa.RecordBatchStreamReader) and file.tell() < file.size():
            raise pa.ArrowInvalid(f"more follows its end at byte {file.tell():,}; several were put together")


def unread_columns(location: Location, *, arrow: bool) -> list[str]:
    """Columns of a table that are not read; raises `DataError`."""
    if arrow:
        with _arrow(location) as (_, reader):
            schema = reader.schema
    else:
        with _parquet(location) as table:
            schema = table.schema_arrow
    known = {*_known(schema, location), *(_OWN if "sample_id" in schema.names else ())}
    return [name for name in schema.names if name not in known]


@contextmanager
def _parquet(location: Location) -> Iterator[pq.ParquetFile]:
    try:
        with location.filesystem.open_input_file(location.path) as file:
            table = pq.ParquetFile(file, buffer_size=_PIECE)
            _require_one(table.metadata, file)
            yield table
    except TABLE_ERRORS as error:
        raise DataError(f"{location.shown} is not a whole Parquet file ({reason(error)}).") from error


def _require_one(described: pq.FileMetaData, file: pa.NativeFile) -> None:
    """Raise `ArrowInvalid` for several Parquet files put together: the last one's places would be looked up in the
    first."""
    end = len(_MAGIC)
    if described.num_row_groups:
        last = described.row_group(described.num_row_groups - 1)
        for chunk in map(last.column, range(last.num_columns)):
            places = (chunk.dictionary_page_offset, chunk.data_page_offset)
            start = min(place for place in places if place is not None)
            end = max(end, start + chunk.total_compressed_size)
    footer = file.size() - described.serialized_size - 2 * len(_MAGIC)
    for at in range(end, footer, _PIECE):  # indexes and filters, of few bytes
        if 2 * _MAGIC in file.read_at(_PIECE + len(_MAGIC), at):
            raise pa.ArrowInvalid("it holds several, put together; name them apart")


@contextmanager
def _arrow(
    location: Location,
) -> Iterator[tuple[pa.NativeFile, pa.RecordBatchFileReader | pa.RecordBatchStreamReader]]:
    try:
        with location.filesystem.open_input_file(location.path) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            yield file, pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
    except TABLE_ERRORS as error:
        raise DataError(f"{location.shown} is not a whole Arrow file ({reason(error)}).") from error


def _starts(batch: pa.RecordBatch) -> range:
    return range(0, batch.num_rows, _ROWS)


def _known(schema: pa.Schema, location: Location) -> list[str]:
    """The columns to read."""
    if not any(name in schema.names for name in TALKS):
        raise DataError(
            f"{location.shown} has the columns {', '.join(schema.names)}; "
            f"one of {', '.join(TALKS)} must hold the conversations."
        )
    doubled = [name for name, times in Counter(schema.names).items() if times > 1]
    if doubled:
        raise DataError(f"{location.shown} has the column {doubled[0]!r} twice; give each its own name.")
    own = _OWN - _COLUMNS if "sample_id" in schema.names else ()
    pictured = any(name in schema.names for name in PICTURES)
    return [
        field.name
        for field in schema
        if (field.name == MORE if field.name in own else _is_read(field, pictured=pictured))
    ]


def _is_read(column: pa.Field, *, pictured: bool) -> bool:
    """Whether a column has a meaning here, or may have content that a row cannot hold."""
    if column.name in _COLUMNS or is_content(column.name):
        return True
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if _is_text(kind):
        return True  # a text may be the path of a picture
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return not pictured and any(kind.get_field_index(name) >= 0 for name in ("bytes", "path", "url"))
    return not pictured and (_is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _numbered(batches: Iterable[pa.RecordBatch]) -> Iterator[Numbered]:
    records = (record for batch in batches for record in _records(batch))
    for number, record in enumerate(records, start=1):
        try:
            yield number, record if isinstance(record, ItemError) else _item(record)
        except ItemError as error:
            yield number, error


def _records(batch: pa.RecordBatch) -> Iterable[dict[str, object] | ItemError]:
    """The rows of a batch; one whose texts are not UTF-8, which nothing checks when a table is written, is an error.

    Only what pyarrow has validated becomes Python objects: it would follow an offset that leads outside a batch, and
    the process would end. Raises `ArrowInvalid` for such a batch.
    """
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if batch.num_rows > 1:
            return [record for at in range(batch.num_rows) for record in _records(batch.slice(at, 1))]
        if "UTF8" not in str(error):
            raise
        return [ItemError("not UTF-8", "the row holds text that is not UTF-8")]
    return batch.to_pylist()


def _turned(name: str, columns: dict[str, object]) -> list[dict[str, object]]:
    lists = [values for values in columns.values() if isinstance(values, list)]
    if len(lists) != len(columns) or len({len(values) for values in lists}) != 1:
        raise ItemError("wrong field", f"the lists in the column {name!r} must be of one length")
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _item(record: dict[str, object]) -> dict[str, object]:
    """The row without empty names, its turns as a list."""
    item = {"id": record.pop("sample_id"), **record} if "sample_id" in record else dict(record)
    if isinstance(more := item.pop(MORE, None), list):  # our own schema
        item["image"] = [item.get("image"), *more]
    for name in ("conversations", "messages", "conversation"):
        turns = item.get(name)
        if isinstance(turns, str):
            item[name] = parsed(turns, f"the column {name!r}")
        elif isinstance(turns, dict):  # a struct of lists, as older `datasets` write a list of structs
            item[name] = _turned(name, turns)
    return {name: value for name, value in item.items() if value is not None or name == "id"}
