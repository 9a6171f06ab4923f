"""What a stream file names: one file, a folder, or a pattern of several files, by a path or by a URI."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from components.core.errors import DataError, StorageError
from components.core.file_systems import reason
from components.core.location import Location, here, is_uri
from components.core.location import locate as located

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_FILES = 100_000  # that a pattern may name


def is_pattern(name: str) -> bool:
    """Whether a file's name is a pattern for several files."""
    return "*" in name or _RANGE.search(name) is not None


def locate(given: str, base: Path) -> Location:
    """What a stream file names: a URI, or a path below the folder `base`; raises `ConfigError` for unknown schemes."""
    if not is_uri(given):
        return here(base / given)
    uri, mark, query = given.partition("?")
    uri, pattern = uri.rstrip("/"), ""
    if is_pattern(uri.rpartition("/")[2]):  # its signs are not allowed in a URI
        uri, _, pattern = uri.rpartition("/")
    folder = located(f"{uri}{mark}{query}")
    return folder / pattern if pattern else folder


@contextmanager
def looked_at(location: Location) -> Iterator[None]:
    """Turn a store that does not answer, or a folder that is not there, into a `DataError`."""
    try:
        yield
    except StorageError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{location.shown!r:.200} cannot be read ({reason(error)}).") from None


def matches(location: Location) -> list[Location]:
    """The files that a pattern matches: `*` for any text and {000..003} for numbers, in the last part of the path.

    Raises `DataError` when a named one is missing or nothing matches, for each of the numbers.
    """
    if not is_pattern(location.name):
        return [location]
    names = [location.name]
    while (found := _RANGE.search(names[0])) is not None:
        first, last = found.groups()
        if max(len(first), len(last)) > 9 or len(names) * (int(last) - int(first) + 1) > _MOST_FILES:
            raise DataError(f"{location.shown} names more than {_MOST_FILES:,} files; name fewer, or a folder.")
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        names = [name.replace(found.group(), number, 1) for name in names for number in numbers]
    if names and "*" in names[0]:
        with looked_at(location.parent):
            there = [file.name for file in location.parent.iterdir()]
        if not location.name.startswith("."):
            there = [name for name in there if not name.startswith(".")]  # as a shell does
        held = {wanted: [name for name in there if fnmatchcase(name, wanted)] for wanted in names}
        empty = [wanted for wanted, found in held.items() if not found]
        names = empty or sorted({name for found in held.values() for name in found})
    files = [location.parent / name for name in names]
    with looked_at(location):
        missing = next((file for file in files if not file.is_file()), None)
    if not files or missing is not None:
        raise DataError(f"{(missing or location).shown} is not a file.")
    return files
