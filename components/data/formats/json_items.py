"""JSON files item by item: memory stays at one item, however long the file is.

A file is read as JSON values one after the other, in any mixture: a list, whose elements are items, also inside a list;
objects, one a line or over several lines; an object with one list of items and metadata
(`{"data": [...]}`). Whatever cannot be read becomes an item too, an `ItemError`, so nothing is skipped silently.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from components.core.errors import DataError
from components.core.file_systems import reason
from components.core.location import Location, here
from components.data.formats.fields import TALKS
from components.data.problems import ItemError

Numbered = tuple[int, object | ItemError]  # an item's number from 1, and its value or why it has none

UNREADABLE = (ValueError, RecursionError)  # what `json` raises: no JSON, a number of thousands of digits, a deep nest
_CHUNK = 1 << 20  # characters read at a time
_SPACE, _COMMA = re.compile("[ \t\r\n\ufeff]*"), re.compile("[ \t\r\n\ufeff,]*")  # files put together bring their marks
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escaped half of a character beyond 16 bits; whole ones come in pairs
_LARGEST_ITEM = 1 << 26  # characters; a longer "item" means broken JSON


def iter_items(where: Path | Location, remark: Callable[[int, str], None] = lambda *_: None) -> Iterator[Numbered]:
    """Number and parsed value of every item of a JSON or JSONL file, or why it cannot be parsed.

    While every value is an object on its own line, numbers are those of the lines; otherwise items are counted. An item
    whose text is not UTF-8 is an error of that item. `remark` is called once, with an item's number, when the file
    has more than one list. Raises `DataError` when the file cannot be opened.
    """
    location = here(where) if isinstance(where, Path) else where
    try:
        with io.TextIOWrapper(location.unpacked(), encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from _Values(file, remark).items()
    except OSError as error:
        raise DataError(f"{location.shown} cannot be read ({reason(error)}).") from error


def parsed(text: str, name: str) -> object:
    """The value of a text that is JSON from start to end; raises `ItemError` that calls it `name`."""
    text = text.strip(" \t\r\n")
    try:
        value, end = _Decoder().value(text)
        if end < len(text):
            raise ValueError("more follows its end")
    except UNREADABLE as error:
        raise ItemError("broken JSON", f"{name} is not JSON ({why_unreadable(error)})") from error
    found = value if isinstance(value, ItemError) else readable(text, value)
    if isinstance(found, ItemError):
        raise found
    return found


def why_unreadable(error: Exception) -> str:
    """What is wrong with a text that is not JSON, in a few words."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


class _Decoder:
    """JSON values. A field that an object has twice is an error: only the last one would be seen."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)
        self._doubled: set[str] = set()

    def value(self, text: str, position: int = 0) -> tuple[object | ItemError, int]:
        """The value at a position, and where it ends."""
        self._doubled.clear()
        value, end = self._decoder.raw_decode(text, position)
        if not self._doubled:
            return value, end
        names = ", ".join(map(repr, sorted(self._doubled)))
        return ItemError("doubled field", f"an object of the item has {names} twice, and only one can be meant"), end

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self._doubled |= {name for name, times in Counter(name for name, _ in pairs).items() if times > 1}
        return found


@dataclass(kw_only=True)
class _Buffer:
    """What was read of a file and not used yet."""

    file: TextIO
    text: str = ""
    position: int = 0
    lines: int = 0
    """Line ends before `position`."""
    ended: bool = False

    def more(self, size: int) -> bool:
        """Read on; false at the end of the file."""
        read = self.file.read(size)
        self.ended = not read
        self.text, self.position = self.text[self.position :] + read, 0
        return not self.ended

    def use(self, end: int) -> str:
        """The text up to `end`, which is used now."""
        used = self.text[self.position : end]
        self.lines += used.count("\n")
        self.position = end
        return used

    def skip(self, gap: re.Pattern[str]) -> str:
        """Skip a gap and return the next character without using it; "" at the end of the file."""
        while True:
            found = gap.match(self.text, self.position)
            self.use(found.end() if found else self.position)
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more(_CHUNK):
                return ""

    def line(self, beyond: int = 0) -> int:
        """Characters up to the end of the line, or of the line of the character `beyond` from the position."""
        while True:
            if (end := self.text.find("\n", self.position + beyond)) >= 0:
                return end + 1 - self.position
            held = len(self.text) - self.position
            if held > _LARGEST_ITEM or not self.more(min(max(_CHUNK, held), _LARGEST_ITEM + 1 - held)):
                return held


class _Values:
    """The values of one file, numbered."""

    def __init__(self, file: TextIO, remark: Callable[[int, str], None]) -> None:
        self._remark: Callable[[int, str], None] | None = remark
        self._buffer = _Buffer(file=file)
        self._decoded = _Decoder().value
        self._number = 0
        self._by_line = True

    def items(self) -> Iterator[Numbered]:
        lists = 0
        while start := self._buffer.skip(_COMMA if self._number else _SPACE):
            if self._remark is not None and (lists or (start == "[" and self._number)):
                self._remark(self._number + 1, "more follows a list or object here; it was read too")
                self._remark = None
            lists += start == "["
            if start == "[":
                self._by_line = False
                self._buffer.use(self._buffer.position + 1)
                if not (yield from self._list()):
                    return
            else:
                yield from self._value()

    def _next(self, line: int = 0) -> int:
        self._number = line if self._by_line and line > self._number else self._number + 1
        return self._number

    def _found(self, text: str, value: object, line: int = 0) -> Iterator[Numbered]:
        """The items in a value, which was parsed from `text`."""
        try:
            inside = _inside(value)
        except ItemError as error:
            yield self._next(line), error
            return
        if inside is None:
            yield self._next(line), value if isinstance(value, ItemError) else readable(text, value)
            return
        self._by_line = False
        suspect = _stray_byte(text) is not None or _HALF.search(text) is not None
        for item in inside:
            yield from self._found(json.dumps(item, ensure_ascii=False) if suspect else "", item)

    def _list(self) -> Iterator[Numbered]:
        """The items of a list whose opening bracket was used; returns whether the rest of the file can be read."""
        buffer, size, gap = self._buffer, _CHUNK, _SPACE
        while True:
            if buffer.skip(gap) == "]":
                buffer.use(buffer.position + 1)
                return True
            try:
                value, end = self._decoded(buffer.text, buffer.position)
            except json.JSONDecodeError as error:
                left = _LARGEST_ITEM - (len(buffer.text) - buffer.position)
                if left >= 0 and buffer.more(min(size, left + 1)):
                    size *= 2  # doubling keeps retries on a long item linear
                    continue
                why = error.msg if buffer.position < len(buffer.text) else "unexpected end of the file"
                yield self._next(), self._lost(f"the list is not JSON from here on ({why})")
                return False
            except UNREADABLE as error:
                yield self._next(), self._lost(f"the list cannot be read from here on ({why_unreadable(error)})")
                return False
            yield from self._found(buffer.use(end), value)
            size, gap = _CHUNK, _COMMA

    def _lost(self, detail: str) -> ItemError:
        stray = _stray_byte(self._buffer.text[self._buffer.position :])
        return ItemError(stray.kind if stray else "broken JSON", stray.detail if stray else detail, rest_lost=True)

    def _value(self) -> Iterator[Numbered]:
        """What is at this position outside a list: a value, or a line that is not one."""
        buffer, number, more_lines = self._buffer, self._buffer.lines + 1, 1
        first = size = buffer.line()
        while True:
            text = buffer.text[buffer.position : buffer.position + size]
            try:
                value, used = self._decoded(text)
                break
            except UNREADABLE as error:
                unfinished = isinstance(error, json.JSONDecodeError) and not text[error.pos :].strip()
                if unfinished and size <= _LARGEST_ITEM:
                    for _ in range(more_lines):
                        size = buffer.line(size)
                    more_lines *= 2  # doubling keeps retries on a long value linear
                    if size > len(text):
                        continue
                broken = ItemError("broken JSON", f"the line is not JSON ({why_unreadable(error)})")
                yield self._next(number), _stray_byte(buffer.use(buffer.position + first)) or broken
                return
        self._by_line &= not text[used:].strip() and "\n" not in text[:used]
        yield from self._found(buffer.use(buffer.position + used), value, number)
        rest = buffer.line()
        behind = buffer.text[buffer.position : buffer.position + rest].lstrip(" \t\r\ufeff,")
        if behind and behind[0] not in "[{\n":
            detail = f"the value is followed by {behind.strip()!r:.40}, which is not JSON"
            yield self._next(), _stray_byte(buffer.use(buffer.position + rest)) or ItemError("broken JSON", detail)


def _inside(value: object) -> list[object] | None:
    """The items inside a value that is not an item itself: a list of them, or an object around one such list.

    Raises `ItemError` for an object around several lists of objects, of which one cannot be chosen.
    """
    if isinstance(value, list):
        return value if _is_group(value) else None
    if not isinstance(value, dict) or _is_item(value):
        return None
    lists = {name: held for name, held in value.items() if isinstance(held, list) and any(map(_is_object, held))}
    if not any(_is_item(item) for held in lists.values() for item in held):
        return None
    if len(lists) > 1:
        names = ", ".join(map(repr, lists))
        raise ItemError("several lists", f"the object holds the lists {names}; write a file for each that is meant")
    return next(iter(lists.values()))


def _is_group(value: list[object]) -> bool:
    """Whether the elements of a list are items, right or wrong, and not turns; an empty list has none."""
    if not value or any(_is_item(item) or isinstance(item, list) for item in value):
        return True
    objects = [item for item in value if isinstance(item, dict)]
    return bool(objects) and not any(name in item for item in objects for name in ("from", "role"))


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_item(value: object) -> bool:
    return isinstance(value, dict) and any(name in value for name in TALKS)


def readable(text: str, value: object) -> object | ItemError:
    """`value`, which was parsed from `text`, or why it cannot be written as UTF-8."""
    if (stray := _stray_byte(text)) is not None:
        return stray
    if _HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return _half_a_character()
    return value


def _stray_byte(text: str) -> ItemError | None:
    """What is wrong with a text whose bytes were not all UTF-8 (they were read as halves of characters)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        if not 0xDC80 <= half <= 0xDCFF:
            return _half_a_character()
        byte = half - 0xDC00  # as "surrogateescape" puts it
        return ItemError("not UTF-8", f"the item holds the byte 0x{byte:02x}, which is not UTF-8 text")
    return None


def _half_a_character() -> ItemError:
    return ItemError("not UTF-8", "the item has half of an escaped character, which is not text")
