"""A JSON list or a JSONL file item by item: memory stays at one item, however long the file is."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from components.data.reports import ItemError
from components.data.storage import Location, here, reason
from components.errors import DataError

Numbered = tuple[int, object | ItemError]  # an item's number from 1, and its value or why it has none

UNREADABLE = (ValueError, RecursionError)  # what `json` raises: no JSON, a number of thousands of digits, a deep nest
_CHUNK = 1 << 20  # characters read at a time from a JSON list
_SPACE, _COMMA = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n,]*")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escaped half of a character beyond 16 bits; whole ones come in pairs
_LARGEST_ITEM = 1 << 26  # characters; a longer "item" means broken JSON


def iter_items(where: Path | Location) -> Iterator[Numbered]:
    """Number and parsed value of every item of a JSON list or JSONL file, or why it cannot be parsed.

    The numbers of JSONL are those of its lines. An item whose text is not UTF-8 is a fault of that item. Raises
    `DataError` when the file cannot be opened.
    """
    location = here(where) if isinstance(where, Path) else where
    try:
        with io.TextIOWrapper(location.open(), encoding="utf-8-sig", errors="surrogateescape") as file:
            first = file.read(1)
            while first.isspace():
                first = file.read(1)
            yield from _list_items(file) if first == "[" else _lines(file, first)
    except OSError as error:
        raise DataError(f"{location.shown} cannot be read ({reason(error)}).") from error


def why_unreadable(error: Exception) -> str:
    """What is wrong with a text that is no JSON, in a few words."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _lines(file: TextIO, first: str) -> Iterator[Numbered]:
    number = 0
    for number, line in enumerate(file, start=1):
        text = first + line if number == 1 else line
        if not text.strip():
            continue
        try:
            yield number, readable(text, json.loads(text))
        except UNREADABLE as error:
            broken = ItemError("broken JSON", f"the line is not JSON ({why_unreadable(error)})")
            yield number, _stray_byte(text) or broken
    if number == 0 and first:
        yield 1, ItemError("broken JSON", "the line is not JSON")


def _list_items(file: TextIO) -> Iterator[Numbered]:
    """The items of a list whose opening bracket was read already."""
    decoder, buffer, place, size, number = json.JSONDecoder(), "", 0, _CHUNK, 1
    while True:
        place = _skipped(_SPACE if number == 1 else _COMMA, buffer, place)
        if buffer.startswith("]", place):
            return
        try:
            value, end = decoder.raw_decode(buffer, place)
        except json.JSONDecodeError as error:
            more = file.read(size)
            if not more or len(buffer) - place > _LARGEST_ITEM:
                why = error.msg if place < len(buffer) else "unexpected end of the file"
                broken = ItemError("broken JSON", f"the list is not JSON from here on ({why})")
                yield number, _stray_byte(buffer[place:]) or broken
                return
            buffer, place, size = buffer[place:] + more, 0, size * 2  # doubling keeps retries on a long item linear
            continue
        except UNREADABLE as error:
            why = why_unreadable(error)
            yield number, ItemError("broken JSON", f"the list cannot be read from here on ({why})")
            return
        yield number, readable(buffer[place:end], value)
        place, size, number = end, _CHUNK, number + 1


def _skipped(gap: re.Pattern[str], buffer: str, place: int) -> int:
    found = gap.match(buffer, place)
    return found.end() if found else place


def readable(text: str, value: object) -> object | ItemError:
    """`value`, which was parsed from `text`, or why it cannot be written as UTF-8."""
    if (stray := _stray_byte(text)) is not None:
        return stray
    if _HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return ItemError("not UTF-8", "the item holds half of an escaped character, which is no text")
    return value


def _stray_byte(text: str) -> ItemError | None:
    """What is wrong with a text whose bytes were not all UTF-8 (they were read as halves of characters)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00  # as "surrogateescape" puts it
        return ItemError("not UTF-8", f"the item holds the byte 0x{byte:02x}, which is not UTF-8 text")
    return None
