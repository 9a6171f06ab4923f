"""Damage: ways in which the bytes of a file, or the values of a JSON file, may be wrong. All draws are seeded."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

ODD_VALUES: tuple[object, ...] = (
    None, True, -1, 0, 10**400, 2**63, 1.5, -0.0, "", "x", "\0", "../../etc/passwd", "\ud800", "\u202e\x1b[31m", [], {},
    [[]], [None], {"": None}, {"a": {"b": [1]}}, "9" * 5000,
)  # fmt: skip
RAW = (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"[" * 100_000, b'{"a":' * 5000, b"9" * 5000, b"\xff", b"\\u0000")
Mutation = Callable[[bytes, random.Random], bytes]


def mutated(content: bytes, draw: random.Random, *, is_json: bool) -> bytes:
    """The content with one to three faults."""
    kinds = [*_BYTES, *((_values, _values, _values, _raw) if is_json else ())]
    for _ in range(draw.choice((1, 1, 2, 3))):
        content = draw.choice(kinds)(content, draw)
    return content


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 4, 16))):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _empty(_: bytes, __: random.Random) -> bytes:
    return b""


def _swap(content: bytes, draw: random.Random) -> bytes:
    a, b, c = sorted(draw.randrange(len(content) + 1) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def _insert(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    return content[:at] + draw.randbytes(draw.choice((1, 3, 64))) + content[at:]


def _zeros(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    return content[:at] + b"\0" * draw.choice((1, 8, 512)) + content[at + draw.choice((0, 8, 512)) :]


def _long(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    return content[:at] + draw.choice((b" ", b"a", b"[", b'"', b"{0..999999}")) * 300_000 + content[at:]


def _numbers(content: bytes, draw: random.Random) -> bytes:
    """Four bytes that read as a length."""
    at = draw.randrange(len(content) + 1)
    value = draw.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0"))
    return content[:at] + value + content[at + 4 :]


_BYTES: tuple[Mutation, ...] = (_flip, _flip, _cut, _empty, _swap, _insert, _zeros, _long, _numbers)


def _raw(content: bytes, draw: random.Random) -> bytes:
    """A JSON value, as it is written, replaced by a text that few parsers like."""
    places = [at for at, byte in enumerate(content) if byte in b":[,"]
    at = draw.choice(places) + 1 if places else 0
    end = next((end for end in range(at, len(content)) if content[end] in b",]}"), len(content))
    return content[:at] + draw.choice(RAW) + content[end:]


def _values(content: bytes, draw: random.Random) -> bytes:
    """A value of another type, a key left out or a key renamed, somewhere in a JSON file or a line of one."""
    try:
        lines: list[Any] = [json.loads(line) for line in content.splitlines() if line.strip()]
        whole: Any = lines if len(lines) > 1 else lines[0]
    except (ValueError, RecursionError, IndexError):
        try:
            whole, lines = json.loads(content), []
        except (ValueError, RecursionError):
            return content
    if draw.random() < 0.05:
        whole = _odd(draw)
    places = _places(whole)
    if places:
        held, key = draw.choice(places)
        change = draw.random()
        if change < 0.2:
            del held[key]
        elif change < 0.3 and isinstance(held, dict):
            held[draw.choice(("x", "", "\0", "..", "a" * 5000, "\ud800"))] = held.pop(key)
        else:
            held[key] = _odd(draw)
    try:
        if len(lines) > 1 and isinstance(whole, list):
            return "\n".join(json.dumps(line) for line in whole).encode()
        return json.dumps(whole).encode()
    except ValueError:  # a number of hundreds of digits after another mutation
        return content


def _odd(draw: random.Random) -> Any:
    """Of its own: the next mutation may change what is in it."""
    return copy.deepcopy(draw.choice(ODD_VALUES))


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        inside = list(one.items()) if isinstance(one, dict) else list(enumerate(one)) if isinstance(one, list) else []
        found += [(one, key) for key, _ in inside]
        waiting += [held for _, held in inside]
    return found
