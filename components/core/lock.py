"""The lock of a folder or a file: it keeps a second command out while one is at work there.

The lock is the kernel's, on a file that names its holder, so it ends with its process in any case. NFS 4 and Lustre
carry it from host to host. For file systems that do not, the holder also touches the file (see heartbeat.py): a file
that names another host and is still touched is held, whatever the kernel here says. Where there are no locks at all,
whoever creates the file holds it. In a store that a URI names, the lock is a folder of tickets (tickets.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from components.core import heartbeat, tickets
from components.core.errors import ConfigError
from components.core.holder import Held, Holder, lives, named_in, own_name
from components.core.location import Location, Place
from components.core.run_files import LOCK_FILE

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_HELD = {errno.EWOULDBLOCK, errno.EACCES}
_TRIES, _BETWEEN_TRIES_S = 5, 0.02  # `holder_of` looks at a lock for microseconds, and must not keep its owner out
_LOOK_AGAIN_S = 0.5

_held: set[Place] = set()  # lock files, by this process


def holder_of(folder: Place) -> Holder | None:
    """Who holds, or held, the lock of `folder`; None where nobody does. Raises `OSError` where it cannot be read.

    Nothing is written, and a lock that is held stays so. A shared lock is asked for and given back at once: no call
    tells about a lock on every file system without asking for one.
    """
    if isinstance(folder, Location):
        return tickets.holder_of(folder / LOCK_FILE)
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        named = _named(descriptor)
        holds: bool | None = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD | _NO_LOCKS:
                raise
            here = named.host == socket.gethostname()
            holds = True if error.errno in _HELD else lives(named.process) if here else None
    finally:
        os.close(descriptor)
    if not holds and named.host not in ("", socket.gethostname()):
        holds = None  # a shared file system need not carry locks from host to host
    return Holder(process=named.process, host=named.host, since=named.since, holds=holds)


@contextmanager
def sole_user(folder: Place, what: str, *, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock of `folder` while open; the folder is made if it is missing.

    While another process holds it, this one waits if `wait` is given, which is first told for whom. Folders made here
    that are still empty at the end are removed.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written. The message begins with `what`,
            such as "run first".
    """
    folder = folder if isinstance(folder, Location) else folder.resolve()
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK_FILE, keep_waiting=waits(wait, what)))
        except Held as error:
            raise ConfigError(
                f"{what} is already running in {folder} ({error}); wait until it ends (--wait does that), or stop that "
                "process and give the same command again."
            ) from None
        except OSError as error:
            raise ConfigError(f"cannot write to {folder} ({error.strerror}); choose a writable --storage.") from error
        yield


def waits(say: Callable[[str], None] | None, what: str) -> Callable[[str], bool]:
    """A `keep_waiting` that tells once for whom `what` is waited for; without `say`, nothing is waited for."""
    told: list[str] = []

    def keep_waiting(holder: str) -> bool:
        if say is not None and holder not in told:
            told.append(holder)
            say(f"waiting for {what}, which {holder} has")
        return say is not None

    return keep_waiting


@contextmanager
def locked(path: Place, *, keep_waiting: Callable[[str], bool] = lambda _: False) -> Iterator[None]:
    """Hold the lock file `path` while open; inside an open one of this process, nothing happens.

    Missing folders are made, and removed at the end if they are still empty. `keep_waiting` is asked twice a second
    while another process holds the lock, with that process's name. Raises `Held` when it says no, and `OSError` where
    the file cannot be written.
    """
    path = path if isinstance(path, Location) else path.parent.resolve() / path.name
    if path in _held:
        yield
        return
    if isinstance(path, Location):
        with tickets.held(path, keep_waiting):
            _held.add(path)
            try:
                yield
            finally:
                _held.discard(path)
        return
    made = [each for each in path.parents if not os.path.lexists(each)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held_at(path, keep_waiting):
            yield
    finally:
        with suppress(OSError):  # as a rule the first of them is not empty
            for each in made:
                each.rmdir()


@contextmanager
def _held_at(path: Path, keep_waiting: Callable[[str], bool]) -> Iterator[None]:
    while True:
        try:
            descriptor = _taken(path)
            break
        except Held as error:
            if not keep_waiting(str(error)):
                raise
        time.sleep(_LOOK_AGAIN_S)
    _held.add(path)
    try:
        with heartbeat.beating(path, descriptor):
            yield
    finally:
        _held.discard(path)
        if _same_file(descriptor, path):
            path.unlink(missing_ok=True)  # while still locked: later it could be another process's file
        os.close(descriptor)


def _taken(path: Path) -> int:
    """The open lock file, which names this process now; raises `Held`."""
    while True:
        descriptor, created = _opened(path)
        try:
            if _is_ours(descriptor, path, created=created):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{own_name()}\n".encode(), 0)
                os.fsync(descriptor)  # for readers on other hosts
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _opened(path: Path) -> tuple[int, bool]:
    """The open lock file, and whether this process has created it."""
    while True:
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC), False
        with suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), True


def _is_ours(descriptor: int, path: Path, *, created: bool) -> bool:
    """Whether this process may have the lock file; False when it was removed meanwhile. Raises `Held`."""
    by_kernel = _kernel_lock(descriptor)
    if not _same_file(descriptor, path):
        return False  # its holder has just ended
    named, here = _named(descriptor), socket.gethostname()
    if created or (by_kernel and named.host in ("", here)):
        return True
    if (named.host == here and lives(named.process)) or heartbeat.seems_alive(path, named.name):
        raise Held(named.name)
    if by_kernel:
        return True
    _remove_stale(descriptor, path)
    return False


def _kernel_lock(descriptor: int) -> bool:
    """Lock the open file; False on a file system without locks. Raises `Held`."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            if error.errno not in _HELD:
                raise
        time.sleep(_BETWEEN_TRIES_S)
    raise Held(_named(descriptor).name)


def _remove_stale(descriptor: int, path: Path) -> None:
    """Remove the file of a holder that is gone, unless another process was quicker and holds it now."""
    aside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.stale")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if not _same_file(descriptor, aside):
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _named(descriptor: int) -> Holder:
    return named_in(os.pread(descriptor, 1000, 0))


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
