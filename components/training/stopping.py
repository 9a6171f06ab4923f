"""Stopping a run early without losing work: its workers look for a file named `stop` in its folder while they train.

They agree on it within a second and an update, write a checkpoint and leave by themselves, so the same command goes on
with the run. If it were killed instead, its workers would keep their place in the cluster until Ray notices.
"""

from __future__ import annotations

from pathlib import Path

STOP_FILE = "stop"


class StopRequested(Exception):
    """Leaves a worker's loop; the driver then raises `StreamStopped`."""


def request_stop(run_dir: Path) -> None:
    """Ask the run in this folder to stop within its next updates."""
    (run_dir / STOP_FILE).touch()


def stop_requested(run_dir: Path) -> bool:
    """Whether the run in this folder was asked to stop."""
    return (run_dir / STOP_FILE).exists()


def clear_stop(run_dir: Path) -> None:
    """Withdraw the request, before a stopped run is continued."""
    (run_dir / STOP_FILE).unlink(missing_ok=True)
