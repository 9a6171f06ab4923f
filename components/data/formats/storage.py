"""Where files are: a path of this machine, or a URI of any file system that pyarrow or fsspec knows.

`s3://bucket/folder`, `gs://`, `hdfs://` and `file://` are pyarrow's own; any other scheme is fsspec's. Credentials come
from where the file system looks for them (environment, profile, instance); an S3-compatible store is named by
`?endpoint_override=host:port&scheme=http` or AWS_ENDPOINT_URL. They are never shown or written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import fsspec
import fsspec.implementations.local
import pyarrow as pa
from pyarrow import fs

from components.core.errors import ConfigError, DataError
from components.core.reading import why

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^?]*)(\?.*)?", re.DOTALL)
_SECRET = re.compile(r"(?<=://)[^/\s]*@|(?<=\S)\?\S*")  # user:password@ and a query
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PIECE = 1 << 20  # bytes read at a time
_MOST_FILES = 100_000  # that a pattern may name


@dataclass(frozen=True, kw_only=True)
class Location:
    """A file, a folder or a pattern of file names."""

    filesystem: fs.FileSystem = field(repr=False)
    path: str
    shown: str
    """For people: without user, password and query."""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def local(self) -> Path | None:
        """The path, when this machine's own file system holds it."""
        return Path(self.path) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def below(self, name: str) -> Location:
        """`name` inside this folder; the caller has checked that it stays inside."""
        return replace(self, path=f"{self.path.rstrip('/')}/{name}", shown=f"{self.shown.rstrip('/')}/{name}")

    def beside(self, name: str) -> Location:
        """`name` in the same folder."""
        folders = (text.rpartition("/")[0] for text in (self.path, self.shown))
        path, shown = (f"{folder}/{name}" for folder in folders)
        return replace(self, path=path, shown=shown)

    def is_file(self) -> bool:
        return self.facts().type == fs.FileType.File

    def is_dir(self) -> bool:
        return self.facts().type == fs.FileType.Directory

    def facts(self) -> fs.FileInfo:
        """Kind, size and time of change; raises `DataError`."""
        try:
            return cast(Sequence[fs.FileInfo], self.filesystem.get_file_info([self.path]))[0]
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise DataError(f"{self.shown!r:.200} cannot be read ({reason(error)}).") from None

    def listing(self, *, recursive: bool = False) -> list[fs.FileInfo]:
        """The folder's entries, by path; raises `DataError`."""
        try:
            found = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=recursive))
        except OSError as error:
            raise DataError(f"{self.shown} cannot be listed ({reason(error)}).") from None
        return sorted(cast(Sequence[fs.FileInfo], found), key=lambda info: info.path)

    def open(self) -> BinaryIO:
        """The file, to be read from its start to its end; .gz, .bz2 and .zst are unpacked. Raises `OSError`."""
        return cast(BinaryIO, self.filesystem.open_input_stream(self.path, buffer_size=_PIECE))

    def matches(self) -> list[Location]:
        """The files that a pattern matches: `*` for any text and {000..003} for numbers, in the last part of the path.

        Raises `DataError` when a named one is missing or none matches.
        """
        if not is_pattern(self.name):
            return [self]
        names = [self.name]
        while (found := _RANGE.search(names[0])) is not None:
            first, last = found.groups()
            if max(len(first), len(last)) > 9 or len(names) * (int(last) - int(first) + 1) > _MOST_FILES:
                raise DataError(f"{self.shown} names more than {_MOST_FILES:,} files; name fewer, or a folder.")
            numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
            names = [name.replace(found.group(), number, 1) for name in names for number in numbers]
        if names and "*" in names[0]:
            there = [PurePosixPath(info.path).name for info in self.beside("").listing()]
            names = sorted({name for name in there if any(fnmatchcase(name, wanted) for wanted in names)})
        files = [self.beside(name) for name in names]
        missing = next((file for file in files if not file.is_file()), None)
        if not files or missing is not None:
            raise DataError(f"{(missing or self).shown} is not a file.")
        return files


def is_pattern(name: str) -> bool:
    """Whether a file's name is a pattern for several files."""
    return "*" in name or _RANGE.search(name) is not None


def here(path: Path) -> Location:
    """A path of this machine."""
    return Location(filesystem=fs.LocalFileSystem(), path=str(path), shown=str(path))


def locate(given: str, base: Path) -> Location:
    """What a stream file names: a URI, or a path below the folder `base`; raises `ConfigError` for unknown schemes."""
    uri = _URI.fullmatch(given)
    if uri is None:
        return here(base / given)
    folder, pattern = uri[2].rstrip("/"), ""
    if is_pattern(folder.rpartition("/")[2]):  # its signs are not allowed in a URI
        folder, _, pattern = folder.rpartition("/")
    filesystem, path = _opened(uri[1], f"{uri[1]}://{folder}{uri[3] or ''}")
    location = Location(filesystem=filesystem, path=path, shown=without_secrets(f"{uri[1]}://{folder}"))
    return location.below(pattern) if pattern else location


def _opened(scheme: str, uri: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it. The libraries' own messages repeat the secrets, so they are left out."""
    if scheme in ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"):
        try:
            filesystem, path = fs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, ValueError) as error:
            raise ConfigError(f"{without_secrets(uri)} cannot be opened ({reason(error)}).") from None
        return filesystem, path
    try:
        found, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(
            f"{without_secrets(uri)} cannot be opened ({reason(error)}); "
            f"give file, s3, gs, hdfs or a scheme of fsspec whose package is installed."
        ) from None
    if isinstance(found, fsspec.implementations.local.LocalFileSystem):
        return fs.LocalFileSystem(), str(path)
    return fs.PyFileSystem(fs.FSSpecHandler(found)), str(path)


def without_secrets(text: str) -> str:
    """A URI, or a sentence with URIs in it, without user, password and query."""
    return _SECRET.sub("", text)


def reason(error: Exception) -> str:
    """Why reading failed, as its library says it, on one line and without secrets."""
    said = getattr(error, "strerror", None)
    return without_secrets(said or why(error))
