"""Where files are: a path of this machine, or a URI of any file system that pyarrow or fsspec knows.

A `Location` answers what a `pathlib.Path` answers, as far as runs ask. Whoever writes one goes through `files.py`.

Light on purpose (no torch, no ray): pyarrow is imported when the first URI is opened.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, TypeVar, cast

from components.core.asking import Answer, asked
from components.core.errors import ConfigError
from components.core.file_systems import ONE_SLASH, URI, WHOLE_PUTS, opened, without_secrets
from components.core.machine import partial_name, temporary_prefix
from components.core.secrets import without_secrets as hidden

if TYPE_CHECKING:
    from pyarrow import fs

_PIECE = 1 << 20  # bytes read at a time


class Facts(NamedTuple):
    """What is known of a file without reading it, under the names that `os.stat` has for it."""

    st_size: int
    st_mtime: float  # by the store's own clock; 0 where it does not say


@dataclass(frozen=True, kw_only=True)
class Location:
    """A file, or a folder, of a file system. An object store has folders only as parts of names."""

    filesystem: fs.FileSystem = field(repr=False, compare=False)
    path: str
    shown: str
    """For people: without user, password and query."""
    whole_puts: bool = False
    """Whether a file appears when all of it is there. Otherwise it is written under another name and moved."""
    query: str = field(default="", repr=False, compare=False)
    """Behind the path in the URI that opens it, such as the address of a store; empty where it holds a secret."""
    patience_s: float = field(default=0.0, compare=False)
    """How long an operation is tried again that fails, but is not refused."""

    def __str__(self) -> str:
        return self.shown

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        """The name without its last ending."""
        return PurePosixPath(self.path).stem

    @property
    def parent(self) -> Location:
        """The folder that it is in."""
        return self._at(*(_above(text.rstrip("/")) for text in (self.path, self.shown)))

    @property
    def uri(self) -> str:
        """What opens it again, unless that holds a secret."""
        return f"{self.shown}{self.query}"

    def as_uri(self) -> str:
        """For records: without the query."""
        return self.shown

    def absolute(self) -> Location:
        """Itself: a URI is never relative."""
        return self

    resolve = absolute

    @property
    def local(self) -> Path | None:
        """The path, when this machine's own file system holds it."""
        from pyarrow import fs

        return Path(self.path) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> object:
        """In JSON it is its text, as a path is."""
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(cls, serialization=core_schema.to_string_ser_schema())

    def __truediv__(self, name: str) -> Location:
        """`name`, or several with slashes between them, inside this folder; raises `ConfigError` where it is not."""
        parts = name.split("/")
        if not all(parts) or {".", ".."} & {*parts} or "\0" in name:
            raise ConfigError(f"{name!r:.200} is not the name of a file inside {self.shown}.")
        return self._at(*(f"{folder.rstrip('/')}/{name}" if folder else name for folder in (self.path, self.shown)))

    def at(self, path: str) -> Location:
        """Another path of the file system, this one or below it."""
        return self._at(path, self.shown + path.removeprefix(self.path))

    def _at(self, path: str, shown: str) -> Location:
        return replace(self, path=path, shown=shown)

    # ---- what is there

    def is_file(self) -> bool:
        """Whether it is a file; like all that asks the store, this raises `StorageError` where that does not answer."""
        return self.facts().is_file

    def is_dir(self) -> bool:
        """Whether it is a folder, or in an object store the beginning of a name."""
        return self.facts().type.name == "Directory"

    def exists(self) -> bool:
        """Whether it is either."""
        return self.facts().type.name != "NotFound"

    def stat(self) -> Facts:
        """Size and time of change of a file; raises `FileNotFoundError`."""
        info = self.facts()
        if info.type.name == "NotFound":
            raise self._missing()
        return self._told(info)

    def facts_inside(self) -> list[Facts]:
        """The same of all files in the folder, as a rule by one request."""
        return [self._told(info) for info in self.listing() if info.is_file]

    def _told(self, info: fs.FileInfo) -> Facts:
        changed = info.mtime
        if changed is None and info.is_file and (store := self._fsspec()) is not None:
            with suppress(Exception):  # not every one of them knows
                changed = store.modified(info.path)
        return Facts(st_size=info.size or 0, st_mtime=0.0 if changed is None else changed.timestamp())

    def iterdir(self) -> Iterator[Location]:
        """What is in the folder, by name, as `listing` says."""
        yield from (self / name for name in sorted({PurePosixPath(info.path).name for info in self.listing()}))

    def files_below(self) -> list[str]:
        """Names of all files in the folder and in those below, with slashes; none where it is not there."""
        try:
            found = self.listing(recursive=True)
        except FileNotFoundError:
            return []
        return [PurePosixPath(each.path).relative_to(self.path).as_posix() for each in found if each.is_file]

    def glob(self, pattern: str) -> Iterator[Location]:
        """What matches, by name: `*.parquet`, `checkpoints/[!.]*`. Nothing where the folder is not there."""
        first, _, rest = pattern.partition("/")
        found = [self / first]
        if any(sign in first for sign in "*?["):
            try:
                listed = self.listing()
            except FileNotFoundError:
                return
            names = {PurePosixPath(info.path).name for info in listed if not (rest and info.is_file)}
            found = [self / name for name in sorted(names) if fnmatchcase(name, first)]
        for each in found:
            if rest:
                yield from each.glob(rest)
            elif each.exists():
                yield each

    def facts(self) -> fs.FileInfo:
        """Kind, size and time of change, as far as the store says them."""
        return self._ask("read", lambda: cast("list[fs.FileInfo]", self.filesystem.get_file_info([self.path]))[0])

    def listing(self, *, recursive: bool = False) -> list[fs.FileInfo]:
        """The folder's entries, by path; raises `FileNotFoundError`. In an object store it may lag behind."""
        from pyarrow import fs

        selector = fs.FileSelector(self.path, recursive=recursive)
        found = self._ask("listed", lambda: self.filesystem.get_file_info(selector))
        return sorted(cast("list[fs.FileInfo]", found), key=lambda info: info.path)

    # ---- reading

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """The file as it is, to be read in any order."""
        return cast(BinaryIO, self._ask("read", lambda: self.filesystem.open_input_file(self.path)))

    def unpacked(self) -> BinaryIO:
        """The file, to be read from its start to its end; .gz, .bz2 and .zst are unpacked. Raises `OSError`."""
        return cast(BinaryIO, self.filesystem.open_input_stream(self.path, buffer_size=_PIECE))

    def read_bytes(self, limit: int | None = None) -> bytes:
        """All of the file, or its first `limit` bytes; raises `FileNotFoundError`."""

        def read() -> bytes:
            with self.filesystem.open_input_file(self.path) as file:
                return cast(bytes, file.read(limit))

        return self._ask("read", read)

    def fetch(self, target: Path) -> None:
        """Copy the file to one of this machine; raises `FileNotFoundError`."""

        def copy() -> None:
            with self.filesystem.open_input_file(self.path) as source, target.open("wb") as file:
                while piece := source.read(16 * _PIECE):
                    file.write(piece)

        self._ask("read", copy)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The same as text."""
        return self.read_bytes().decode(encoding)

    # ---- writing

    def put(self, content: bytes | Path) -> None:
        """Write the file, or what a file of this machine holds, so that a reader sees all of it, or what was there.

        After an error, or a kill, the old content is there; a store that moves files may have it at `set_aside`.
        """
        self._ask("written", lambda: self._put(content))

    def _put(self, content: bytes | Path) -> None:
        if self.whole_puts:
            self._write(content)
            return
        partial = replace(self.parent / partial_name(self.name), patience_s=0.0)
        self.filesystem.create_dir(self.parent.path, recursive=True)
        try:
            partial._write(content)
            partial._replace(replace(self, patience_s=0.0))
        finally:
            with suppress(Exception):  # it was moved, or the store is gone: the error that was raised says more
                self.filesystem.delete_file(partial.path)

    @property
    def set_aside(self) -> Location:
        """Where the old file is for the moment between two moves."""
        return self.parent / f".{self.name}.older"

    def _replace(self, target: Location) -> None:
        """Move this file there. File systems differ in whether a move may replace a file, so an old one goes first."""
        older = target.set_aside
        if target.exists() and older.exists():
            self.filesystem.delete_file(older.path)
        try:
            if target.exists():
                self.filesystem.move(target.path, older.path)
            self.filesystem.move(self.path, target.path)
        except BaseException:
            if not target.exists() and older.exists():
                self.filesystem.move(older.path, target.path)
            raise
        if older.exists():
            self.filesystem.delete_file(older.path)

    def _write(self, content: bytes | Path) -> None:
        """All of it in one call, never a stream that an error leaves half written: closing that would commit half."""
        import pyarrow as pa

        store = self._fsspec()
        if store is not None and isinstance(content, Path):
            store.put_file(str(content), self.path)
        elif store is not None:
            store.pipe_file(self.path, content)
        else:
            if isinstance(content, Path):
                empty = not content.stat().st_size  # nothing can be mapped
                content = b"" if empty else pa.memory_map(str(content)).read_buffer()
            stream = self.filesystem.open_output_stream(self.path, compression=None)
            stream.write(content)
            stream.close()

    def make_folder(self) -> None:
        """Make the folder, where a store has any."""
        if not self.whole_puts:
            self._ask("written", lambda: self.filesystem.create_dir(self.path, recursive=True))

    def move_to(self, target: Location) -> None:
        """Move the file within its store, in the place of an older one; an object store copies it by itself."""
        target.parent.make_folder()
        self._ask("moved", lambda: self._replace(replace(target, patience_s=0.0)))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file; raises `FileNotFoundError` unless it may be missing."""
        try:
            self._ask("removed", lambda: self.filesystem.delete_file(self.path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_folder(self) -> None:
        """Remove the folder with all that is in it, if it is there. Its marker must be gone before."""
        with suppress(FileNotFoundError):
            self._ask("removed", lambda: self.filesystem.delete_dir(self.path))

    # ---- errors

    def _fsspec(self) -> Any:
        """fsspec's own object, for what pyarrow's bridge to it lacks; None for pyarrow's file systems."""
        return getattr(getattr(self.filesystem, "handler", None), "fs", None)

    def _missing(self) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.shown)

    def _ask(self, done: str, ask: Callable[[], Answer]) -> Answer:
        return asked(self.shown, done, ask, self.patience_s)


Place = Path | Location
AnyPlace = TypeVar("AnyPlace", Path, Location, Place)


def _above(text: str) -> str:
    return text.rpartition("/")[0] or "/" * text.startswith("/")


def name_inside(file: Place, folder: Place) -> str:
    """`checkpoints/01-a` of a place in the folder; raises `ValueError` for another one."""
    if isinstance(file, Path) and isinstance(folder, Path):
        return file.relative_to(folder).as_posix()
    return PurePosixPath(str(file)).relative_to(str(folder)).as_posix()


def here(path: Path) -> Location:
    """A path of this machine."""
    from pyarrow import fs

    return Location(filesystem=fs.LocalFileSystem(), path=str(path), shown=str(path))


def is_uri(given: str) -> bool:
    """Whether a text is a URI and no path."""
    return URI.fullmatch(given) is not None


def place(given: str | Path) -> Place:
    """What a user names: a path of this machine, also as `file://`, or a URI; raises `ConfigError`."""
    if not is_uri(str(given)):
        if isinstance(given, str) and (meant := ONE_SLASH.fullmatch(given)):
            raise ConfigError(
                f"{without_secrets(given)!r:.200} has one slash where a URI has two; "
                f"give {without_secrets(f'{meant[1]}://{meant[2]}')!r:.200}."
            )
        return Path(given).expanduser()
    location = locate(str(given))
    return location.local or location


def folder_at(given: str | Path) -> Place:
    """The same for a folder that is written: a path is absolute, and as it is without links."""
    found = place(given)
    return found.resolve() if isinstance(found, Path) else found


def uri_or_path(where: Place) -> str:
    """What names a place on a command line and in a file: the inverse of `place`."""
    return str(where) if isinstance(where, Path) else where.uri


def patient(where: AnyPlace, seconds: float) -> AnyPlace:
    """A place in a store whose operations are tried again for so long; paths stay as they are."""
    return replace(where, patience_s=seconds) if isinstance(where, Location) else where


def locate(uri: str) -> Location:
    """What a URI names; raises `ConfigError` for unknown schemes."""
    found = URI.fullmatch(uri)
    if found is None:
        raise ConfigError(f"{uri!r:.200} is no URI; give scheme://folder, such as s3://bucket/runs.")
    scheme, folder, query = found[1].lower(), found[2].rstrip("/"), found[3] or ""
    shown = without_secrets(f"{scheme}://{folder}")
    if {".", ".."} & {*folder.split("/")} or "" in folder.split("/")[1:]:
        raise ConfigError(f"{shown!r:.200} has a part that is empty or leads up; name the folder that you mean.")
    if scheme in WHOLE_PUTS - {"memory"} and not folder.strip("/"):
        raise ConfigError(f"{shown!r:.200} names no bucket; give one, such as {scheme}://bucket/runs.")
    filesystem, path = opened(scheme, f"{scheme}://{folder}{query}")
    kept = query if query == hidden(query) and shown == f"{scheme}://{folder}" else ""
    return Location(filesystem=filesystem, path=path, shown=shown, whole_puts=scheme in WHOLE_PUTS, query=kept)


@contextmanager
def fetched(file: Place) -> Iterator[Path]:
    """The file as one of this machine, for libraries that want a path; a copy of it is removed at the end."""
    near = file if isinstance(file, Path) else file.local
    if near is not None:
        yield near
        return
    assert isinstance(file, Location)
    with tempfile.TemporaryDirectory(prefix=temporary_prefix("fetched")) as folder:
        copy = Path(folder) / file.name
        file.fetch(copy)
        yield copy
