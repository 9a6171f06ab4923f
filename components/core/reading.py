"""The door for JSON files that Littoral reads back: whatever their bytes are, the outcome is a value or one sentence.

Bounds: a file of at most `JSON_BYTES`, nested at most `JSON_DEPTH` deep, whole numbers of at most 64 bits. Texts are
UTF-8 without NUL; NaN and infinities are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from components.core.errors import LittoralError, StorageError

if TYPE_CHECKING:  # it imports this module
    from components.core.location import Place

JSON_BYTES = 64 << 20
JSON_DEPTH = 64
_WHOLE = 1 << 64

# What a reader raises for a value of another type or range than it wants.
ODD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError)


def read_json(path: Place, error: type[LittoralError], advice: str, *, limit: int = JSON_BYTES) -> Any:
    """The value in a JSON file; raises `error` that names the file, what is wrong with it, and `advice`."""
    try:
        if isinstance(path, Path):
            with path.open("rb") as file:
                content = file.read(limit + 1)
        else:
            content = path.read_bytes(limit + 1)
        if len(content) > limit:
            raise ValueError(f"it has more than {limit:,} bytes")
        return parse_json(content)
    except StorageError:  # of a store that does not answer: the file may be whole
        raise
    except (OSError, ValueError) as reason:
        said = reason.strerror if isinstance(reason, OSError) else reason
        raise error(f"{path} cannot be read ({said}); {advice}.") from reason


def read_object(path: Place, error: type[LittoralError], advice: str, *, limit: int = JSON_BYTES) -> dict[str, Any]:
    """The same where the file must hold an object."""
    value = read_json(path, error, advice, limit=limit)
    if not isinstance(value, dict):
        raise error(f"{path} cannot be read (it is not a JSON object); {advice}.")
    return value


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text within the bounds; raises `ValueError` that says in a few words what is wrong."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = json.loads(text, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise ValueError(f"nested deeper than {JSON_DEPTH}") from error
    _check(value, texts="\\u" in text)
    return value


@contextmanager
def understood(path: Place | str, error: type[LittoralError], advice: str) -> Iterator[None]:
    """Turn what a value of unexpected shape raises into `error`, with the file's name and `advice`."""
    try:
        yield
    except LittoralError as known:
        if str(path) in str(known):
            raise
        raise type(known)(f"{path}: {known}") from known
    except ODD as odd:
        said = f"no {why(odd)}" if isinstance(odd, KeyError) else why(odd)
        raise error(f"{path} does not have the content it should ({said}); {advice}.") from odd


def why(error: BaseException) -> str:
    """What an error of a library says, on one line that a terminal can show."""
    said = " ".join(str(error).split()) or type(error).__name__
    return "".join(sign if sign.isprintable() else "?" for sign in said)[:300].rstrip(".")


def is_plain_name(name: str) -> bool:
    """Whether a name that a file gives is one of an entry beside it: nothing above, below or elsewhere."""
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name) and len(name) <= 255


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no JSON number")


def _check(value: object, *, texts: bool) -> None:
    """Depth, numbers and, where escapes can hide them, texts that cannot be written again."""
    level: list[object] = [value]
    for _ in range(JSON_DEPTH):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                below += one.values()
                if texts:
                    below += one
            elif isinstance(one, list):
                below += one
            elif isinstance(one, float):
                if not math.isfinite(one):
                    raise ValueError("it holds a number that is too large")
            elif isinstance(one, int):
                if abs(one) > _WHOLE:
                    raise ValueError("it holds a whole number of more than 64 bits")
            elif texts and isinstance(one, str):
                _check_text(one)
        if not below:
            return
        level = below
    raise ValueError(f"nested deeper than {JSON_DEPTH}")


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ValueError("it holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of an escaped character") from error
