"""Files that are there as a whole or not at all: written under another name in the same folder, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """While open, write to the path that this gives; it then takes the place of `path`, or is removed after an error.

    Processes may write the same file at once, also on several hosts: each has a name of its own until it is done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder. `path` must not exist, or be an empty folder; otherwise `OSError`."""
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)  # of a process with the same number, long gone
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a UTF-8 text so that a reader sees all of it or none; missing folders are made.

    `durable` waits until the content is on disk before the rename, so a power failure cannot leave an empty file.
    """
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes so that a reader sees all of them or none; missing folders are made."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: object) -> None:
    """Write JSON so that a reader sees all of it or none; missing folders are made."""
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
