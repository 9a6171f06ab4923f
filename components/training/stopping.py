"""Ending a run early and in order: a file named `stop` in its folder, which its workers look for before every update.

They leave a checkpoint and end by themselves, so whoever starts the run again loses nothing. A process that is killed
instead leaves its workers' place in the cluster taken until Ray notices.
"""

from __future__ import annotations

from pathlib import Path

STOP_FILE = "stop"


class StopRequested(Exception):
    """Leaves a worker's loop; the driver then raises `StreamStopped`."""


def request_stop(run_dir: Path) -> None:
    """Ask the run in this folder to end before its next update."""
    (run_dir / STOP_FILE).touch()


def stop_requested(run_dir: Path) -> bool:
    return (run_dir / STOP_FILE).exists()


def clear_stop(run_dir: Path) -> None:
    """What going on with a stopped run begins with."""
    (run_dir / STOP_FILE).unlink(missing_ok=True)
