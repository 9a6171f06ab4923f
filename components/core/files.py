"""Files that are there as a whole or not at all: written under another name in the same folder, then renamed.

What is *durable* is on disk before it counts: the content is synced, then renamed, then the folder is synced. Without
that a power failure can leave the new name with nothing behind it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_SYNC = {errno.EINVAL, errno.ENOTSUP}  # of file systems that cannot sync a folder, such as some over a network


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """While open, write to the path that this gives; it then takes the place of `path`, or is removed after an error.

    Processes may write the same file at once, also on several hosts: each has a name of its own until it is done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        if durable:
            sync(partial)
        partial.replace(path)
        if durable:
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, durable: bool = False, replace: bool = False) -> Iterator[Path]:
    """The same for a folder of files. `path` must not exist, or be an empty folder; otherwise `OSError`.

    `replace`: an older folder is set aside for the moment between two renames, and then removed.
    """
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)  # of a process with the same number, long gone
    partial.mkdir(parents=True)
    older = partial.with_suffix(".older")
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
        if older.exists() and not path.exists():
            older.rename(path)
        for each in (partial, older):
            shutil.rmtree(each, ignore_errors=True)


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


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text, durably, so that a reader sees all of it or none; missing folders are made."""
    with whole_file(path, durable=True) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes so that a reader sees all of them or none; missing folders are made. Not durable."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: object) -> None:
    """Write JSON, durably, so that a reader sees all of it or none; missing folders are made."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content in hex digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_path(path: Path) -> Path:
    """Where this process writes what becomes `path`: `.NAME.HOST.PID.partial` beside it."""
    return path.with_name(f".{path.name}.{host_name()}.{os.getpid()}.partial")


def host_name() -> str:
    """This machine's name without its domain."""
    return socket.gethostname().split(".")[0]
