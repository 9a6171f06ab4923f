"""How a store is asked: again for a while where it fails, and in one sentence where it does not answer.

Light on purpose (no torch, no ray, no pyarrow).
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

from components.core.errors import StorageError
from components.core.file_systems import reason

Answer = TypeVar("Answer")

PATIENCE_S = 30.0  # of a run at work; as long as it holds its lock without a word (tickets.LOST_S)
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 4.0  # between tries, doubled each time
# What is said the same a moment later: another try would only take time.
_REFUSED = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_|SIGNATURE|UNRECOGNIZED_CLIENT|EXPIRED|forbidden|unauthorized|denied"
    r"|HTTP (status )?(code )?40[13]",
    re.IGNORECASE,
)
# What S3's client puts around the error itself: the key and the bucket once more, a number of the request.
_WORDY = re.compile(r"^When .*?: (?=AWS Error )| \(Request ID: \w*\)$", re.DOTALL)


def asked(place: str, done: str, ask: Callable[[], Answer], patience_s: float) -> Answer:
    """What `ask` returns, which may be called again within `patience_s` where it fails but is not refused.

    Whatever a store's client raises becomes `FileNotFoundError`, or `StorageError` in one sentence: `place` cannot be
    `done` ("read").
    """
    end, pause_s = time.monotonic() + patience_s, _PAUSE_S
    while True:
        try:
            return ask()
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place) from None
        except Exception as error:
            refused = isinstance(error, PermissionError | FileExistsError | ValueError) or _REFUSED.search(str(error))
            if refused or time.monotonic() + pause_s > end:
                if isinstance(error, StorageError):  # of a part of what was asked
                    raise
                tried = "" if refused or not patience_s else f", for {patience_s:.0f} s"
                raise _trouble(place, done, reason(error), tried) from None  # its own text may hold secrets
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _trouble(place: str, done: str, why: str, tried: str) -> StorageError:
    why = _WORDY.sub("", why)
    todo = "see that it can be reached from here and that you may do that there"
    if "NO_SUCH_BUCKET" in why:
        todo = "make that bucket, or correct its name"
    trouble = StorageError(f"{place} cannot be {done} ({why}{tried}); {todo}, and give the same command again.")
    trouble.errno, trouble.strerror, trouble.filename = errno.EIO, why, place
    return trouble
