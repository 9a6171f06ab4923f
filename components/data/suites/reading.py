"""Reading released suites: JSON lists and objects, and Parquet tables whose pictures are structs of bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import DataError
from components.data.problems import ItemError

_BATCH = 32  # rows held at a time; a picture may have megabytes


def json_file(path: Path, key: str | None = None) -> object:
    """The content of a JSON file, or the value of `key` in its object; raises `DataError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        return content if key is None else content[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        wanted = "JSON" if key is None else f'a JSON object with "{key}"'
        raise DataError(f"{path} is not {wanted} ({error!r:.90}); download it again.") from error


def json_list(path: Path, key: str | None = None) -> list[object]:
    """A JSON file that must hold a list; raises `DataError`."""
    content = json_file(path, key)
    if not isinstance(content, list):
        raise DataError(f"{path} is not a list as expected; download it again.")
    return content


def parquet_rows(root: Path, file: str, columns: Sequence[str]) -> Iterator[dict[str, object]]:
    """The rows of one table, a few at a time; raises `DataError` for a file without those columns."""
    try:
        table = pq.ParquetFile(root / file)
        missing = [name for name in columns if name not in table.schema_arrow.names]
        if missing:
            raise KeyError(f"no column {missing[0]}")
        for batch in table.iter_batches(_BATCH, columns=list(columns)):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise DataError(f"{root / file} is no Parquet file with {', '.join(columns)} ({error}).") from error


def picture_bytes(value: object) -> bytes:
    """The encoded picture of a struct of `bytes` and `path`; raises `ItemError`."""
    data = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(data, bytes) or not data:
        raise ItemError("missing image", "the picture's column has no bytes")
    return data


def text_list(value: object, name: str) -> list[str]:
    """A list of texts; raises `ItemError`."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ItemError("wrong field", f'"{name}" must be a list of texts, this is {value!r:.60}')
    return [str(one) for one in value]
