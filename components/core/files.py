"""Files that are there as a whole or not at all: written under another name in the same folder, then renamed.

Places of a URI keep that promise by the rules in `location.py`; they are durable when the call returns.

What is *durable* is on disk before it counts: the content is synced, then renamed, then the folder is synced. Without
that a power failure can leave the new name with nothing behind it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.core.errors import StorageError
from components.core.location import Location, Place
from components.core.machine import partial_name, temporary_prefix
from components.core.tickets import require_not_lost

# What cannot be helped by the program, and will be again for the next file.
_TROUBLE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have the quota raised",
    errno.EFBIG: "have the limit of a file's size raised",
    errno.EROFS: "make it writable",
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN), "bring that storage back"),
}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP}  # of file systems that cannot sync a folder, such as some over a network


@contextmanager
def whole_file(path: Place, *, durable: bool = False) -> Iterator[Path]:
    """While open, write to the path that this gives; it then takes the place of `path`, or is removed after an error.

    Processes may write the same file at once, also on several hosts: each has a name of its own until it is done.
    """
    if isinstance(path, Location):
        with tempfile.TemporaryDirectory(prefix=temporary_prefix("put")) as folder:
            yield Path(folder) / path.name
            require_not_lost(path)
            path.put(Path(folder) / path.name)
        return
    partial = partial_path(path)
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if durable:
                sync(partial)
            partial.replace(path)
            if durable:
                sync(path.parent)
        finally:
            with suppress(OSError):  # of a storage that is gone: the error that was raised says more
                partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(
    path: Place, *, durable: bool = False, replace: bool = False, last: str | None = None
) -> Iterator[Path]:
    """The same for a folder of files. `path` must not exist, or be an empty folder; otherwise `OSError`.

    `replace`: an older folder is set aside for the moment between two renames, and then removed. `last`: the marker,
    the file without which readers take the folder for unfinished. Where folders cannot be renamed, it comes last.
    """
    if isinstance(path, Location):
        if last is None:
            raise ValueError(f"{path} cannot be written as a whole without a marker")
        with tempfile.TemporaryDirectory(prefix=temporary_prefix("put")) as made:
            yield Path(made)
            _put_folder(Path(made), path, last, replace=replace)
        return
    partial = partial_path(path)
    older = partial_path(path.with_name(f"{path.name}.older"))
    shutil.rmtree(partial, ignore_errors=True)  # of a process with the same number, long gone
    with storing(path):
        partial.mkdir(parents=True)
        try:
            yield partial
            if durable:
                for each in (*partial.iterdir(), partial):
                    sync(each)
            if replace and path.exists():
                path.rename(older)
            partial.rename(path)
            if durable:
                sync(path.parent)
        finally:
            with suppress(OSError):
                if older.exists() and not path.exists():
                    older.rename(path)
            for each in (partial, older):
                shutil.rmtree(each, ignore_errors=True)


def _put_folder(made: Path, target: Location, last: str, *, replace: bool) -> None:
    """Files first, then the marker. Of an older folder the marker goes before anything changes that it lists."""
    require_not_lost(target)
    if (target / last).is_file() and not replace:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(target))
    names = [each.relative_to(made).as_posix() for each in sorted(made.rglob("*")) if each.is_file()]
    others = [name for name in names if name != last]
    if others:  # where only the marker changes, it is replaced in one step
        (target / last).unlink(missing_ok=True)
    for name in (*others, last):
        require_not_lost(target)
        (target / name).put(made / name)
    for name in target.files_below():
        if name not in names:
            (target / name).unlink(missing_ok=True)


def make_folder(path: Place) -> None:
    """Make a folder of this machine, and those above it; in a store it is there with the first of its files."""
    if isinstance(path, Path):
        path.mkdir(parents=True, exist_ok=True)


def remove_folder(path: Place, last: str | None = None) -> None:
    """Remove a folder that nobody needs any more, as far as that can be done; it need not be there.

    `last`: its marker, which goes first where a folder goes file by file.
    """
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        require_not_lost(path)
        if last is not None:
            (path / last).unlink(missing_ok=True)
        path.remove_folder()


def move_folder(source: Place, target: Place, last: str) -> None:
    """Move a folder whose marker is `last`. In a store it is copied and then removed; what was begun is ended."""
    if isinstance(source, Path) and isinstance(target, Path):
        target.parent.mkdir(exist_ok=True)
        source.replace(target)
        return
    if not (target / last).is_file():
        for name in sorted(source.files_below() if isinstance(source, Location) else (), key=lambda each: each == last):
            write_bytes(target / name, (source / name).read_bytes())
    remove_folder(source, last)


def set_aside(path: Place, name: str) -> None:
    """Call a file `name`, in the place of an older one of that name; for what is damaged and looked at by people."""
    if isinstance(path, Path):
        path.replace(path.with_name(name))
        return
    write_bytes(path.parent / name, path.read_bytes())  # there under both names for a moment, and never under none
    path.unlink(missing_ok=True)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn a full, read-only or lost storage of `path` into a `StorageError`; every other `OSError` stays as it is."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in _TROUBLE:
            raise
        free = free_bytes(path)
        left = f", {size(free)} free" if free is not None and error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        trouble = StorageError(
            f"{path} cannot be written ({os.strerror(error.errno)}{left}); {_TROUBLE[error.errno]} and give the same "
            "command again."
        )
        trouble.errno, trouble.strerror = error.errno, os.strerror(error.errno)
        raise trouble from error


def free_bytes(path: Path) -> int | None:
    """Free bytes on the file system of `path`, or of the first folder above that is there; None where nobody knows."""
    for each in (path, *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(each).free
    return None


def size(number: float) -> str:
    """`12 kB`, `3.4 GB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number / 1e3:.0f} kB"


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def write_text(path: Place, text: str) -> None:
    """Write a UTF-8 text, durably, so that a reader sees all of it or none; missing folders are made."""
    if isinstance(path, Location):
        write_bytes(path, text.encode())
        return
    with whole_file(path, durable=True) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)


def write_bytes(path: Place, content: bytes) -> None:
    """Write bytes so that a reader sees all of them or none; missing folders are made. Not durable."""
    if isinstance(path, Location):
        require_not_lost(path)
        path.put(content)
        return
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_json(path: Place, content: object) -> None:
    """Write JSON, durably, so that a reader sees all of it or none; missing folders are made."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def file_sha256(path: Place) -> str:
    """SHA-256 of a file's content in hex digits, read in pieces."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def partial_path(path: Path) -> Path:
    """Where this process writes what becomes `path`: `.NAME.HOST.PID.partial` beside it."""
    return path.with_name(partial_name(path.name))
