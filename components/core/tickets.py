"""The lock of a folder in a store that has no locks, and through pyarrow no conditional writes either.

Whoever wants the lock puts a ticket into it, then lists the tickets: alone there, it holds the lock. Of two that come
at once, the later put is followed by a listing with both tickets, so never both are alone, as long as a listing shows
what was put before it (S3, GCS, Azure). Otherwise it takes its ticket away again.

A ticket is written anew every few seconds. One that stays the same for `WATCH_S` of its *watcher's* clock is dead, so
clocks are never compared. Its owner has given up before that: after `LOST_S` without a write that succeeded, by a
clock that goes on while the machine sleeps.

Light on purpose (no torch, no ray).
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from components.core import heartbeat
from components.core.errors import StorageError
from components.core.holder import Held, Holder, named_in, own_name
from components.core.location import Location, Place
from components.core.machine import host_name

LOST_S = 30.0  # less than WATCH_S by far more than a write takes
GIVE_UP_S = 5.0  # for a write that has begun when the lock is given up
AGAIN_S = 0.5
_HOLDS, _CLAIMS = b"holds", b"claims"

logger = logging.getLogger("littoral")
_mine: list[_Ticket] = []  # of locks that this process holds, or has lost and not given back


@contextmanager
def held(lock: Location, keep_waiting: Callable[[str], bool]) -> Iterator[None]:
    """Hold the lock, a folder of tickets, while open.

    `keep_waiting` is asked with the holder's name while another process holds it. Raises `Held` when it says no, and
    `StorageError` where the store does not answer.
    """
    while True:
        ticket = _Ticket(lock)
        try:
            ticket.claim()
            break
        except Held as error:
            ticket.give_up()
            if not keep_waiting(str(error)):
                raise
        except BaseException:
            ticket.give_up()
            raise
        time.sleep(AGAIN_S * random.uniform(1, 2))
    try:
        yield
    finally:
        ticket.give_up()


def holder_of(lock: Location) -> Holder | None:
    """Who holds the lock, by its tickets; None where there are none. Nothing is written and nothing waited for."""
    found: Holder | None = None
    for each in _tickets(lock):
        with suppress(FileNotFoundError):
            content, written = each.read_bytes(), each.stat().st_mtime
            named = named_in(content)
            known, age_s = _known(named, content), time.time() - written if written else None
            found = replace(named, holds=_recent(age_s) if known is None else known)
            if _says(content, _HOLDS):
                break
    return found


def require_not_lost(place: Place) -> None:
    """Raise `StorageError` for a place in a folder whose lock this process had and lost: it is another one's now."""
    for ticket in _mine if isinstance(place, Location) else ():
        folder = ticket.folder
        if f"{place}/".startswith(f"{folder.shown}/") and ticket.lost:
            raise StorageError(
                f"{place} is not written: this process could not renew its lock on {folder} in time, and another one "
                "may have it by now; see who has it with `littoral status`, then give the same command again."
            )


class _Ticket:
    """This process's ticket for a lock, which a thread writes anew."""

    def __init__(self, lock: Location) -> None:
        self._lock, self._by, self.folder = lock, own_name(), lock.parent
        # Names order claims of the same moment; a random one is as good as any, and never comes twice.
        self._place = lock / f"{secrets.token_hex(8)}-{host_name()}"
        self._state, self._beats = _CLAIMS, 0
        self._written, self._was_lost, self._done = _now(), False, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether others may take it for dead by now; once so, always so."""
        self._was_lost = self._was_lost or _now() - self._written > LOST_S
        return self._was_lost

    def claim(self) -> None:
        """Wait until it is the only one that is not dead; raises `Held` where another one holds the lock."""
        self._write()
        self._thread.start()
        tries = 0
        while others := [each for each in _tickets(self._lock) if each.name != self._place.name]:
            for each in others:
                with suppress(FileNotFoundError):
                    content = each.read_bytes()
                    if not _alive(each, content):
                        each.unlink(missing_ok=True)
                    elif _says(content, _HOLDS) or each.name < self._place.name:
                        raise Held(named_in(content).name)
            tries += 1
            if tries > 1:  # one that came at the same time sees this ticket, and takes its own away
                time.sleep(AGAIN_S * random.uniform(0.5, 1))
        self._state = _HOLDS
        self._write()
        _mine.append(self)
        require_not_lost(self._lock)

    def give_up(self) -> None:
        """Take the ticket away; after that, or when the store is gone, it is not written any more."""
        self._done.set()
        if self in _mine:
            _mine.remove(self)
        if self._thread.is_alive():
            self._thread.join(timeout=GIVE_UP_S)
        if self._thread.is_alive():  # the store does not answer: nothing to wait for, and this is dead for others soon
            return
        with suppress(OSError):  # it is dead for others in any case, a little later
            self._place.unlink(missing_ok=True)

    def _write(self) -> None:
        began = _now()  # others may see it from then on
        self._beats += 1
        self._place.put(b"%s\n%s %d\n%s\n" % (self._by.encode(), self._state, self._beats, _process(os.getpid())))
        if not self.lost:
            self._written = began

    def _beat(self) -> None:
        while not self._done.wait(heartbeat.BEAT_S):
            if self.lost:
                logger.warning("the lock %s could not be renewed in time and is lost", self._lock)
                return
            try:
                self._write()
            except OSError as error:
                logger.debug("the lock %s cannot be renewed (%s)", self._lock, error)


def _tickets(lock: Location) -> list[Location]:
    try:
        return [*lock.iterdir()]
    except FileNotFoundError:
        return []


def _says(content: bytes, state: bytes) -> bool:
    return content.split(b"\n")[1:2] != [] and content.split(b"\n")[1].startswith(state)


def _alive(ticket: Location, content: bytes) -> bool:
    """Whether a ticket's process lives. Where that cannot be known: whether it writes its ticket within `WATCH_S`."""
    named = named_in(content)
    if (known := _known(named, content)) is not None:
        return known
    watch_s = heartbeat.WATCH_S
    logger.warning("%s names %s; it is watched for up to %.0f s to see whether that lives", ticket, named.name, watch_s)
    end = time.monotonic() + watch_s
    while time.monotonic() < end:
        time.sleep(min(1.0, heartbeat.BEAT_S))
        try:
            if ticket.read_bytes() != content:
                return True
        except FileNotFoundError:
            return False
    return False


def _known(named: Holder, content: bytes) -> bool | None:
    """Whether the process lives, where it was started under this kernel and in this container; else None."""
    said = content.split(b"\n")[2:3]
    ours, its = _process(os.getpid()).split(), said[0].split() if said else []
    if named.process is None or len(ours) != 3 or len(its) != 3 or its[:2] != ours[:2]:
        return None
    return _process(named.process) == said[0]


def _process(number: int) -> bytes:
    """Kernel, container and start of a process: no other one ever has the same. Empty where the system has no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
        state = Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()
        container = str(Path("/proc/self/ns/pid").readlink()).encode()
        return b"" if state[0] in b"ZX" else b" ".join([boot, container, state[19]])  # not of one that has ended
    except (OSError, IndexError):
        return b""


def _recent(age_s: float | None) -> bool | None:
    """As far as the age of a ticket tells; clocks of hosts are taken to differ by less than `STALE_S`."""
    if age_s is None or heartbeat.WATCH_S < abs(age_s) <= heartbeat.STALE_S:
        return None
    return age_s <= heartbeat.WATCH_S


def _now() -> float:
    """Seconds of a clock that no one sets and that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
