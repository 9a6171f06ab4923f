"""A lock file that its holder touches every few seconds, for what the kernel's locks cannot tell: they may be missing
on a shared file system, or not reach from host to host (NFS with `local_lock`, Lustre with `localflock`).

The clocks of two hosts are compared only when a file is older than `STALE_S`. A younger one is watched for `WATCH_S` by
the watcher's own clock: what lives has touched it by then.

Light on purpose (no torch, no ray).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.core.machine import host_name

BEAT_S = 10.0
WATCH_S = 45.0  # more than four beats
STALE_S = 900.0  # clocks of hosts that share a file system are taken to differ by less

logger = logging.getLogger("littoral")


@contextmanager
def beating(path: Path, descriptor: int) -> Iterator[None]:
    """While open, a thread touches the lock file that is open as `descriptor`."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_S):
            try:
                os.utime(descriptor)  # without a time, so that it is the file server's
            except OSError as error:
                logger.debug("the lock %s cannot be touched (%s)", path, error)

    thread = threading.Thread(target=beat, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=BEAT_S)


def touched(path: Path) -> float | None:
    """When the file was last written or touched; None when it is gone. Opened, because NFS keeps what `stat` says."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def seems_alive(path: Path, name: str) -> bool:
    """Whether the lock file is still touched by its holder, called `name`. Takes up to `WATCH_S`."""
    before = touched(path)
    if before is None or _now_on_its_file_system(path) - before > STALE_S:
        return False
    logger.warning("%s names %s; it is watched for %.0f s to see whether that process lives", path, name, WATCH_S)
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
        time.sleep(min(1.0, BEAT_S))
        now = touched(path)
        if now is None:
            return False
        if now != before:
            return True
    return False


def _now_on_its_file_system(path: Path) -> float:
    """The time by the clock that stamps files there; on a network file system, the server's."""
    probe = path.with_name(f"{path.name}.{host_name()}.{os.getpid()}.probe")
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)
