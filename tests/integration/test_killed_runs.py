"""A short kill campaign: one run, killed at four points, ends with an undisturbed run's bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A worker in the first row, everything in a checkpoint, and the driver by SIGTERM and SIGINT.
SEED = "182"


@pytest.mark.long
def test_a_run_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "tests/campaigns/kills.py", "--kills", "4", "--seed", SEED, "--methods", "lcia"]
    command += ["--folder", str(tmp_path / "runs"), "--record", str(tmp_path / "record.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    summary = json.loads((tmp_path / "record.json").read_text())["summary"]
    assert summary["kills"] >= 4, "points that a run had passed are no kills; then another run is killed"
    assert set(summary["identical"].split(" of ")) == {str(summary["lives"])}
