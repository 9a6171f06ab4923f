"""The lock of a folder: it keeps a second command out while one is at work there."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from components.core.errors import ConfigError

LOCK_FILE = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_HELD = {errno.EWOULDBLOCK, errno.EACCES}
_TRIES, _BETWEEN_TRIES_S = 5, 0.02  # `holder_of` looks at a lock for microseconds, and must not keep its owner out
_HOLDER = re.compile(r"process (\d+) on (\S+) since (.+)")

_held: set[Path] = set()  # by this process


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that a lock file names. After a kill the file stays, and the lock is free."""

    process: int | None  # None where the file does not say
    host: str
    since: str  # as `sole_user` writes it: local time with its offset
    holds: bool | None  # None where this machine cannot know: the file names another host, and no lock of it is seen

    @property
    def name(self) -> str:
        """`process 12 on node-1 since 2026-01-02 03:04:05+00:00`, as the lock file has it."""
        return f"process {self.process} on {self.host} since {self.since}" if self.process else "another process"


def holder_of(folder: Path) -> Holder | None:
    """Who holds, or held, the lock of `folder`; None where nobody does. Raises `OSError` where it cannot be read.

    Nothing is written, and a lock that is held stays so. A shared lock is asked for and given back at once: no call
    tells about a lock on every file system without asking for one.
    """
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = _HOLDER.search(os.pread(descriptor, 1000, 0).decode(errors="replace"))
        process, host, since = (int(found[1]), found[2], found[3].strip()) if found else (None, "", "")
        holds: bool | None = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD | _NO_LOCKS:
                raise
            holds = True if error.errno in _HELD else None
    finally:
        os.close(descriptor)
    if not holds and host not in ("", socket.gethostname()):
        holds = None  # a shared file system need not carry locks from host to host
    return Holder(process=process, host=host, since=since, holds=holds)


@contextmanager
def sole_user(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder` while open; the folder is made if it is missing.

    The lock is the kernel's, on a file in the folder, so it ends with its process in any case. On a file system without
    locks a warning is logged instead. Folders made here that are still empty at the end are removed.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written. The message begins with `what`,
            such as "run first".
    """
    folder = folder.resolve()
    if folder in _held:
        yield
        return
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(folder / LOCK_FILE, what)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder} ({error.strerror}); choose a writable --storage.") from error
    _held.add(folder)
    try:
        yield
    finally:
        _held.discard(folder)
        (folder / LOCK_FILE).unlink(missing_ok=True)  # while still locked: later it could be another process's file
        os.close(descriptor)
        with suppress(OSError):  # as a rule the first of them is not empty
            for each in made:
                each.rmdir()


def _locked(path: Path, what: str) -> int:
    """The open lock file, with the holder's name in it."""
    tries = 0
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except FileNotFoundError:  # its holder has just ended and removed it
            pass
        except OSError as error:
            tries += 1
            if error.errno in _HELD and tries < _TRIES:
                os.close(descriptor)
                time.sleep(_BETWEEN_TRIES_S)
                continue
            if error.errno in _HELD:
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise ConfigError(
                    f"{what} is already running in {path.parent} ({holder}); wait until it ends, or stop that process "
                    "and give the same command again."
                ) from None
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            logging.getLogger("littoral").warning(
                "%s is on a file system without locks (%s); make sure that only one command uses it at a time.",
                path.parent,
                error.strerror,
            )
            break
        os.close(descriptor)
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
    return descriptor
