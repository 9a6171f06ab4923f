"""A signal that arrives while logging holds its lock for a fork is neither swallowed nor leaves the lock held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import logging, os, signal, sys, time
from pipelines import littoral
number, name = signal.Signals[sys.argv[1]], sys.argv[2]
signal.signal(number, littoral._interrupt)
def traced(frame, event, arg):
    if event == "call" and frame.f_code.co_name == name:
        sys.settrace(None)
        os.kill(os.getpid(), number)
sys.settrace(traced)
try:
    if os.fork() == 0:
        os._exit(0)
    time.sleep(20)
    print("lost")
except KeyboardInterrupt as end:
    logging.getLogger().warning("the lock is free")
    print(type(end).__name__)
"""


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="logging has no such functions any more")
@pytest.mark.parametrize("place", ["_acquireLock", "_releaseLock"])
@pytest.mark.parametrize(("name", "raised"), [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", "Terminated")])
def test_it_is_raised_after_the_fork(name: str, raised: str, place: str) -> None:
    command = [sys.executable, "-c", SCRIPT, name, place]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{raised}\n", done.stderr
    assert done.stderr == "the lock is free\n"
