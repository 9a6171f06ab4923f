"""A store in memory that fails at a chosen operation, once or from there on, and whose listings may lag.

It is as unkind as real ones: a stream that is closed after an error commits what it has (S3), files grow before one's
eyes and a move does not replace (HDFS).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from pyarrow import fs

from components.core.location import Location


class Store(fs.FileSystemHandler):
    """`whole_puts`: files appear when they are closed, as in object stores. Content comes `piece` bytes at a time."""

    def __init__(self, *, whole_puts: bool, piece: int = 4) -> None:
        self.whole_puts, self.piece = whole_puts, piece
        self.files: dict[str, bytes] = {}
        self.written: dict[str, datetime] = {}
        self.done: list[str] = []  # operations so far
        self.listed: set[str] | None = None  # what listings show, where they lag
        self._fail_at, self._after, self._gone = 0, False, False

    def place(self, path: str) -> Location:
        """A location in this store."""
        return Location(filesystem=fs.PyFileSystem(self), path=path, shown=f"test://{path}", whole_puts=self.whole_puts)

    @contextmanager
    def failing(self, at: int, *, after: bool, gone: bool) -> Iterator[None]:
        """While open, the operation number `at` fails before or `after` it was done; `gone`: all later ones, too."""
        self.done, self._fail_at, self._after, self._gone = [], at, after, gone
        try:
            yield
        finally:
            self._fail_at = 0

    @contextmanager
    def _operation(self, name: str) -> Iterator[None]:
        self.done.append(name)
        number = len(self.done)
        due = self._fail_at and (number == self._fail_at or (self._gone and number > self._fail_at))
        if due and not (self._after and number == self._fail_at):
            raise OSError(f"lost before {name}")
        yield
        if due:
            raise OSError(f"lost after {name}")

    def _put(self, path: str, content: bytes) -> None:
        self.files[path], self.written[path] = content, datetime.now(UTC)

    def _info(self, path: str) -> fs.FileInfo:
        if path in self.files:
            size = len(self.files[path])
            return fs.FileInfo(path, fs.FileType.File, size=size, mtime=self.written[path])
        folder = any(name.startswith(f"{path.rstrip('/')}/") for name in [*self.files])
        return fs.FileInfo(path, fs.FileType.Directory if folder else fs.FileType.NotFound)

    def get_type_name(self) -> str:
        return "test"

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        with self._operation("look"):
            return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        with self._operation("list"):
            base = f"{selector.base_dir.rstrip('/')}/"
            there = self.listed if self.listed is not None else {*self.files}
            below = [path for path in there if path.startswith(base)]
            if not below:
                raise FileNotFoundError(selector.base_dir)
            shown = below if selector.recursive else {base + path[len(base) :].partition("/")[0] for path in below}
            return [self._info(path) for path in shown if self._info(path).type != fs.FileType.NotFound]

    def create_dir(self, path: str, recursive: bool) -> None:
        with self._operation("make folder"):
            return

    def delete_dir(self, path: str) -> None:
        for name in [name for name in [*self.files] if name.startswith(f"{path}/")]:
            with self._operation("remove one of a folder"):
                del self.files[name]

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise NotImplementedError

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        with self._operation("remove"):
            if path not in self.files:
                raise FileNotFoundError(path)
            del self.files[path]

    def move(self, src: str, dest: str) -> None:
        with self._operation("move"):
            if dest in self.files:
                raise FileExistsError(dest)
            self._put(dest, self.files.pop(src))

    def copy_file(self, src: str, dest: str) -> None:
        raise NotImplementedError

    def open_input_stream(self, path: str) -> Any:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> Any:
        with self._operation("read"):
            if path not in self.files:
                raise FileNotFoundError(path)
            return pa.PythonFile(io.BytesIO(self.files[path]), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        with self._operation("open"):
            pass  # where this fails there is no stream
        return pa.PythonFile(_Written(self, path), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError

    def normalize_path(self, path: str) -> str:
        return path


class _Written(io.RawIOBase):
    """A stream to a file: in pieces, so that a failure can come in the middle."""

    def __init__(self, store: Store, path: str) -> None:
        super().__init__()
        self._store, self._path, self._content, self._broken = store, path, b"", False
        if not store.whole_puts:
            store._put(path, b"")

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        data, self._broken = bytes(content), True  # unless it ends: no store commits what itself has lost a part of
        piece = self._store.piece
        for start in range(0, len(data), piece):
            with self._store._operation("write"):
                self._content += data[start : start + piece]
                if not self._store.whole_puts:
                    self._store._put(self._path, self._content)
        self._broken = False
        return len(data)

    def close(self) -> None:
        if not self.closed and self._store.whole_puts and not self._broken:
            with self._store._operation("commit"):
                self._store._put(self._path, self._content)
        super().close()
