"""A process that ends at once leaves a sentence; one that ends by itself has its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

BODY = """
import os, signal
from components.core.last_word import last_word
try:
    with last_word("error: ended at once; it's $HOME"):
        {inside}
except ValueError:
    pass
"""


@pytest.mark.parametrize(
    ("inside", "code", "said"),
    [
        ("os._exit(1)", 1, "error: ended at once; it's $HOME\n"),
        ("os.killpg(0, signal.SIGKILL)", -signal.SIGKILL, "error: ended at once; it's $HOME\n"),
        ("os.abort()", -signal.SIGABRT, "error: ended at once; it's $HOME\n"),
        ("print('done')", 0, ""),
        ("raise ValueError", 0, ""),
    ],
)
def test_it_is_said_when_nobody_else_can(inside: str, code: int, said: str) -> None:
    command = [sys.executable, "-c", BODY.format(inside=inside)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, start_new_session=True)
    assert (ended.returncode, ended.stderr) == (code, said)
