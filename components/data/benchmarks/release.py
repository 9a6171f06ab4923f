"""Finding a release's files below the root, reading them and their fields, with one sentence for what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import DataError
from components.core.reading import why
from components.data.problems import ItemError

LETTERS = "ABCDEFGHIJ"  # of choices
_BATCH = 32  # rows held at a time; a picture may have megabytes


def find(root: Path, names: Iterable[str], layout: str) -> str:
    """The first of the named files or folders that exists, as a path below `root`; names may have * in the last part.

    Raises `DataError` naming what was looked for and the `layout` that is expected.
    """
    names = list(names)
    for name in names:
        folder, _, last = name.rpartition("/")
        for path in sorted((root / folder).glob(last)) if "*" in last else [root / name]:
            if path.exists():
                return path.relative_to(root).as_posix()
    raise DataError(f"{root} has none of {', '.join(names)}; expected is {layout}.")


def below(folder: str, name: str) -> str:
    """`name` inside `folder`, both below the root."""
    return name if folder in ("", ".") else f"{folder}/{name}"


def roots(*names: str) -> tuple[str, ...]:
    """Prefixes of folders where a release may be: each of `names`, or the root itself."""
    return (*(f"{name}/" for name in names), "")


def text_of(item: dict[str, object], key: str) -> str:
    """A field that must be a text with words in it; raises `ItemError`."""
    value = item.get(key)
    if value is None:
        raise ItemError("missing field", f'the field "{key}" is missing')
    if not isinstance(value, str) or not value.strip():
        raise ItemError("wrong field", f'"{key}" must be a text that is not empty, this is {value!r:.60}')
    return value.strip()


def id_of(item: dict[str, object], *keys: str) -> str:
    """The first of the fields `keys` that is there, a text or a whole number; raises `ItemError`."""
    for key in keys:
        value = item.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise ItemError("wrong field", f'"{key}" must be a text or a whole number, this is {value!r:.60}')
        return str(value).strip()
    names = " or ".join(f'"{key}"' for key in keys)
    raise ItemError("missing field", f"the field {names} is missing")


def answers_of(item: dict[str, object], *keys: str) -> tuple[str, ...]:
    """Accepted answers in the first of the fields `keys` that is there: a text, a number, or a list of them.

    Releases vary between these forms. Raises `ItemError` when there is no answer, or an empty one.
    """
    value = next((item[key] for key in keys if item.get(key) is not None), None)
    given = value if isinstance(value, list) else [value]
    answers: list[str] = []
    for one in given:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise ItemError("empty answer", f'"{keys[0]}" must hold at least one text, this is {value!r:.60}')
        answers.append(str(one).strip())
    if not answers or not all(answers):
        raise ItemError("empty answer", f'"{keys[0]}" has no answer or an empty one')
    return tuple(answers)


def json_file(path: Path, key: str | None = None) -> object:
    """The content of a JSON file, or the value of `key` in its object; raises `DataError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        return content if key is None else content[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        wanted = "JSON" if key is None else f'a JSON object with "{key}"'
        raise DataError(f"{path} is not {wanted} ({error!r:.90}); download it again.") from error


def json_list(path: Path, key: str | None = None) -> list[object]:
    """A JSON file that must hold a list; raises `DataError`."""
    content = json_file(path, key)
    if not isinstance(content, list):
        wanted = "JSON list" if key is None else f'JSON object with a list in "{key}"'
        raise DataError(f"{path} is not a {wanted}; download it again.")
    return content


def parquet_rows(root: Path, file: str, columns: Sequence[str]) -> Iterator[dict[str, object]]:
    """The rows of one table, a few at a time; raises `DataError` for a file without those columns."""
    try:
        table = pq.ParquetFile(root / file)
        missing = [name for name in columns if name not in table.schema_arrow.names]
        if missing:
            raise KeyError(f"no column {missing[0]}")
        for batch in table.iter_batches(_BATCH, columns=list(columns)):
            batch.validate(full=True)
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root / file} is not a Parquet file with {', '.join(columns)} ({why(error)}).") from error


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
