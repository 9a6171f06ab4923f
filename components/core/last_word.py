"""A last word for a process that ends without one: killed from outside, crashed, or ended by native code.

Ray's C++ code ends a process within milliseconds once its node process (raylet) closes their connection, and the
system's killer does not ask either. Nothing in such a process can speak any more, so a shell beside it does.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SHELL = "/bin/sh"
_SCRIPT = 'read -r told || printf "%s\\n" "$0" >&2'  # the end of its input before a line: nobody is left to write one


@contextmanager
def last_word(text: str) -> Iterator[None]:
    """While open, `text` is written to stderr should this process end at once. Elsewhere than on POSIX, nothing is."""
    if os.name != "posix":
        yield
        return
    # In a session of its own: a signal to this process's group must not end it first.
    shell = subprocess.Popen(
        [_SHELL, "-c", _SCRIPT, text],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    assert shell.stdin is not None
    try:
        yield
    finally:
        with suppress(OSError):  # it is no longer there
            shell.stdin.write(b"\n")
            shell.stdin.close()
        shell.wait()
