"""Waiting for Ray: what was waited for comes back, and a cluster whose head is gone ends the waiting."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.ray_watch import left_ray, watched

ROOT = Path(__file__).resolve().parents[2]
JOINED = """
import sys, threading, time
import ray._private.worker as ray_worker
from components.core import ray_watch
from components.core.errors import LostError

class Joined:  # a node of a cluster elsewhere
    gcs_address = sys.argv[1]
    def dead_processes(self): return []
    def is_head(self): return False
    def get_logs_dir_path(self): return "/tmp/ray/session/logs"

ray_worker._global_node = Joined()
ray_watch.SILENT_S, ray_watch.ASK_EVERY_S = 0.5, 0.1
try:
    ray_watch.watched(lambda: time.sleep(float(sys.argv[2])), "waits")
    print("done")
    ray_worker._global_node = None
except LostError as error:
    print(error, file=sys.stderr)
    print("after")
"""


def joined(address: str, work_s: float) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", JOINED, address, str(work_s)]
    return subprocess.run(command, env=environment, timeout=60, check=False, capture_output=True, text=True)


def test_what_was_waited_for_comes_back() -> None:
    assert watched(lambda: 7, "seven") == 7
    with pytest.raises(ZeroDivisionError):
        watched(lambda: 1 // 0, "fails")
    assert not left_ray()


def test_a_head_that_does_not_answer_ends_the_waiting_and_the_process() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        refused = joined(address, 60)  # bound, but nobody listens
        server.listen(100)
        answered = joined(address, 1.5)
    assert refused.returncode == 1
    said = f"Ray was lost: its head at {address} has not answered for 0 s; its logs are in /tmp/ray/session/logs"
    assert refused.stderr.splitlines() == [said]
    assert refused.stdout == "after\n"
    assert (answered.returncode, answered.stdout, answered.stderr) == (0, "done\n", "")


STARTS = """
import sys, threading, time

import psutil

from components.core.ray_session import ray_session

def kill_two_nodes():
    killed = set()
    while len(killed) < 2:
        for child in psutil.Process().children():
            if child.name() == "raylet" and child.pid not in killed:
                child.kill()
                killed.add(child.pid)
        time.sleep(0.02)

threading.Thread(target=kill_two_nodes, daemon=True).start()
began = time.monotonic()
with ray_session(None, num_workers=1):
    print(f"{time.monotonic() - began:.0f}")
"""


@pytest.mark.long
def test_a_node_that_ends_while_it_starts_is_not_waited_for() -> None:
    """As a busy machine's does: without an agent after 15 s it ends by itself."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STARTS]
    done = subprocess.run(command, env=environment, timeout=300, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^Ray was not up after \d+ s on this busy machine\.$", done.stderr, re.MULTILINE)) == 2
    assert int(done.stdout) < 85, done.stdout  # Ray itself waits 30 s for each, and a living one has 60 in its second
