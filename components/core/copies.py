"""Copies, on this machine, of files that lie in a store: each is fetched once, and all together are bounded.

    <cache of this machine>/copies/<sha256 of the content, or of what names it><ending>

All processes of the machine share them. Those that were not asked for longest are removed where together they take
more than $LITTORAL_COPIES_GB (50), or more than half of what is free there.

Light on purpose (no torch, no ray).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from components.core.asking import PATIENCE_S
from components.core.errors import ConfigError, StorageError
from components.core.files import file_sha256, whole_file
from components.core.location import Location, Place, patient
from components.core.machine import cache_dir

COPIES_GB = "LITTORAL_COPIES_GB"
DEFAULT_GB = 50.0
IN_USE_S = 60.0  # one that was asked for so lately may not be open yet; an open one can be read after its removal
AT_ONCE = 16  # requests: each waits for its answer
_LOOKED_AFTER = 0.01  # share of what copies may take: so much a process fetches before it looks how much there is
_ADDRESSES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # of a store whose URI does not name its server

Given = TypeVar("Given")
Found = TypeVar("Found")
_fetched = 0  # bytes, by this process since it last looked
_counting = threading.Lock()


class NotAsListed(ValueError):
    """A file whose content has another digest than what lists it says."""


def copied(file: Place, sha256: str) -> Path:
    """The file itself where this machine holds it, unchecked; of one in a store, a copy with this digest.

    Open it at once: a copy may be removed a minute later. Raises `FileNotFoundError`, `NotAsListed`, and `StorageError`
    where the store does not answer or no copy can be written.
    """
    if re.fullmatch("[0-9a-f]{64}", sha256) is None:
        raise NotAsListed("what lists it gives no SHA-256")
    return _near(file) or _kept(file, _copy(sha256, file), sha256)


def copied_once(file: Place) -> Path:
    """The same for a file that never changes once it is there, and whose digest nobody knows."""
    return _near(file) or _kept(file, _of_unlisted(file), None)


def copy_of(file: Place, sha256: str) -> Path | None:
    """What `copied` gives where there is a copy already; it is not fetched."""
    target = _copy(sha256, file)
    return _near(file) or (target if _used(target) else None)


def forget(file: Place) -> None:
    """Remove the copy that `copied_once` made, because it cannot be read."""
    if _near(file) is None:
        _of_unlisted(file).unlink(missing_ok=True)


def at_once(do: Callable[[Given], Found], given: Iterable[Given]) -> list[Found]:
    """What `do` returns for each, in order; several are done at the same time, because they wait for a store."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return [*threads.map(do, given)]


def copies_dir() -> Path:
    """Where copies are."""
    return cache_dir() / "copies"


def copies_bytes() -> int:
    """How much all of them may take; raises `ConfigError` for a variable that is no positive number."""
    given = os.environ.get(COPIES_GB) or str(DEFAULT_GB)
    with suppress(ValueError):
        if 0 < float(given) < float("inf"):
            return int(float(given) * 1e9)
    raise ConfigError(f"{COPIES_GB} is {given!r:.80}; give a positive number of gigabytes, such as 50.")


def _near(file: Place) -> Path | None:
    return file if isinstance(file, Path) else file.local


def _copy(name: str, file: Place) -> Path:
    return copies_dir() / f"{name}{Path(file.name).suffix}"


def _of_unlisted(file: Place) -> Path:
    assert isinstance(file, Location)
    named = "\0".join([file.uri, *(os.environ.get(name, "") for name in _ADDRESSES)])
    return _copy(hashlib.sha256(named.encode()).hexdigest(), file)


def _kept(file: Place, target: Path, sha256: str | None) -> Path:
    """The copy, fetched where it is not there; processes that want it at the same time wait for each other."""
    if not _used(target):
        with _one_at_a_time(target):
            if not _used(target):
                _fetch(file, sha256, target)
        _make_room(target)
    return target


def _fetch(file: Place, sha256: str | None, target: Path) -> None:
    assert isinstance(file, Location)
    with whole_file(target) as partial:
        patient(file, PATIENCE_S).fetch(partial)
        if sha256 is not None and file_sha256(partial) != sha256:
            raise NotAsListed("its content has another checksum")


def _used(copy: Path) -> bool:
    """Whether it is there; if so, it counts as asked for now."""
    try:
        os.utime(copy)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    """Where the folder has no locks, several processes may fetch the same file, each whole."""
    lock = target.parent / f".{target.name[:2]}.lock"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        opened = lock.open("a")
    except OSError as error:
        raise StorageError(
            f"no copies of files in stores can be kept in {target.parent} ({error.strerror}); set LITTORAL_CACHE to a "
            "folder that can be written, or HOME to one where .cache can be made."
        ) from error
    with opened:
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _make_room(new: Path) -> None:
    """Remove what was not asked for longest, until the rest is within the bounds."""
    global _fetched
    allowed = copies_bytes()
    with _counting:
        _fetched += new.stat().st_size if new.exists() else 0
        if _fetched < _LOOKED_AFTER * allowed:
            return
        _fetched = 0
    found: list[tuple[float, int, Path]] = []
    for each in os.scandir(new.parent):
        with suppress(FileNotFoundError):
            if not each.name.startswith("."):
                facts = each.stat()
                found.append((facts.st_mtime, facts.st_size, Path(each.path)))
    taken = sum(size for _, size, _ in found)
    allowed = min(allowed, (shutil.disk_usage(new.parent).free + taken) // 2)
    for asked, size, path in sorted(found):
        if taken <= allowed:
            return
        if path != new and time.time() - asked > IN_USE_S:
            path.unlink(missing_ok=True)
            taken -= size
