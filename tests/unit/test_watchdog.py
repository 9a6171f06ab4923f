"""A process that stands still writes where, and ends; one that goes on, however slowly, is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.training.watchdog import STACKS_FOLDER, hung

ROOT = Path(__file__).resolve().parents[2]
WORKS = """
import sys, time
from pathlib import Path
from components.training import watchdog
watchdog.GRACE_S = 0.5

def stands_still():
    time.sleep(60)

def works(pauses):
    for pause in pauses:
        time.sleep(pause)
        watchdog.beat()

with watchdog.watchdog(Path(sys.argv[1]), 3, 1.5 / 60):
    works(map(float, sys.argv[3:]))
    if sys.argv[2] == "hangs":
        stands_still()
"""


def worked(run_dir: Path, *arguments: str) -> int:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WORKS, str(run_dir), *arguments]
    return subprocess.run(command, env=environment, timeout=30, check=False).returncode


@pytest.mark.parametrize("before", [(), ("0.1", "0.1")])
def test_a_process_that_stands_still_ends_with_its_stacks(before: tuple[str, ...], tmp_path: Path) -> None:
    assert worked(tmp_path, "hangs", *before) == -signal.SIGALRM
    (stacks,) = (tmp_path / STACKS_FOLDER).glob("*-rank-3.txt")
    assert "in stands_still" in stacks.read_text()
    assert f"its stacks are in {tmp_path / STACKS_FOLDER}" in hung(tmp_path)
    os.utime(stacks, (1, 1))
    assert hung(tmp_path) == ""


def test_slow_work_is_left_alone_and_nothing_stays(tmp_path: Path) -> None:
    # The second pause is longer than the limit with its grace, but less than three times the first.
    assert worked(tmp_path, "ends", "0.9", "2.2") == 0
    assert not (tmp_path / STACKS_FOLDER).exists()
    assert hung(tmp_path) == ""


def test_a_run_without_the_option_has_no_watchdog(tmp_path: Path) -> None:
    script = WORKS.replace("1.5 / 60", "0").replace("time.sleep(60)", "time.sleep(1)")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path), "hangs"], env=environment, timeout=30, check=True)
    assert not list(tmp_path.iterdir())
