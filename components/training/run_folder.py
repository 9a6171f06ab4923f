"""A run's folder: what it may be called, and the lock that keeps a second command out while one is at work in it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from components.core.errors import ConfigError

LOCK_FILE = ".lock"
MAX_ID_BYTES = 200  # file systems allow 255; the rest is for what our own files append
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_RESERVED = re.compile(r"mlflow\.db.*|mlflow-artifacts|mlruns", re.IGNORECASE)  # MLflow's own, beside the runs
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

_held: set[Path] = set()  # by this process


def require_id(name: str, kind: str = "run") -> None:
    """Raise `ConfigError` for a run's (or a sweep's) id that cannot be a folder of its own in the storage."""
    if not _ID.fullmatch(name):
        raise ConfigError(
            f"{kind} id {name!r} may hold letters, digits, '-', '_' and '.' only, and must not begin with '.'."
        )
    if len(name) > MAX_ID_BYTES:
        raise ConfigError(f"{kind} id {name[:40]}... has {len(name)} letters; give at most {MAX_ID_BYTES}.")
    if _RESERVED.fullmatch(name):
        raise ConfigError(f"{kind} id {name!r} is the name of MLflow's own file or folder there; give another one.")


def id_of(*parts: str) -> str:
    """A legal id put together from any texts: `id_of("my stream", "l2p")` -> `my-stream-l2p`."""
    words = (re.sub(r"[^A-Za-z0-9.-]+", "-", part).strip("-.") for part in parts)
    return "-".join(word for word in words if word)[:MAX_ID_BYTES].strip("-.") or "run"


@contextmanager
def sole_user(folder: Path, what: str) -> Iterator[None]:
    """While open, no other process is in here with the same folder, which is made if it is missing.

    The lock is the kernel's, on a file in the folder: it ends with its process, however that ends. Where the file
    system knows no locks, a warning says so. Folders that were made and stay empty are removed again.

    Raises:
        ConfigError: another process holds it, or the folder cannot be written. `what` is named: "run first".
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
        (folder / LOCK_FILE).unlink(missing_ok=True)  # while it is held: nobody else has the same file locked
        os.close(descriptor)
        with suppress(OSError):  # the rule: the first of them holds a run
            for each in made:
                each.rmdir()


def _locked(path: Path, what: str) -> int:
    """The open lock file, with the holder's name in it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except FileNotFoundError:  # its holder has just ended and removed it
            pass
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise ConfigError(
                    f"{what} is at work already in {path.parent}, by {holder}; wait until it ends, or stop that "
                    "process and give the same command again."
                ) from None
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            logging.getLogger("littoral").warning(
                "%s is on a file system without locks (%s): see to it that only one command uses it.",
                path.parent,
                error.strerror,
            )
            break
        os.close(descriptor)
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
    return descriptor
