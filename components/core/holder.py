"""Who holds a lock, as lock files and tickets name it. Light on purpose (no torch, no ray)."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from datetime import datetime

_HOLDER = re.compile(r"process (\d+) on (\S+) since (.+)")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that a lock file names. After a kill the file stays, and the lock is free."""

    process: int | None  # None where the file does not say
    host: str
    since: str  # as it was written: local time with its offset
    holds: bool | None  # None where this machine cannot know: the file names another host, and no lock of it is seen

    @property
    def name(self) -> str:
        """`process 12 on node-1 since 2026-01-02 03:04:05+00:00`, as the lock file has it."""
        return f"process {self.process} on {self.host} since {self.since}" if self.process else "another process"


class Held(Exception):
    """Another process holds a lock; `str` of it names the process, its host and since when."""


def own_name() -> str:
    """How this process is named in the locks that it takes now."""
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"


def named_in(content: bytes) -> Holder:
    """Whom a lock file names, without a look at whether that process lives."""
    found = _HOLDER.search(content.decode(errors="replace"))
    process, host, since = (int(found[1]), found[2], found[3].strip()) if found else (None, "", "")
    return Holder(process=process, host=host, since=since, holds=None)


def lives(process: int | None) -> bool:
    """Whether this host has such a process."""
    try:
        os.kill(process or 0, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process is not None
