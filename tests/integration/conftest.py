"""Options of the integration tests, and what lets two processes of them run beside each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

# Two runs share the cores: a thread that waits for the others of its run must leave its core to the other one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers are not to wait for the tests beside them


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where only tests that want the machine are asked for, the files of all others need not be imported."""
    if not config.option.markexpr.startswith("cluster and") or not collection_path.is_file():
        return None
    return "pytest.mark.cluster" not in collection_path.read_text() or None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-stream", action="store_true", help="learn every published stream, not one of each kind")
    parser.addoption("--every-family", action="store_true", help="kill a run of every kind of model, not of one")
    parser.addoption("--every-method", action="store_true", help="run every method through Ray, not one of each kind")


@pytest.fixture(autouse=True)
def _no_command_left() -> Iterator[None]:
    """End the commands that a test which failed has left: they would take the processors from the tests after it."""
    before = set(psutil.Process().children())
    yield
    for child in set(psutil.Process().children()) - before:
        with suppress(psutil.Error):
            if any("pipelines" in part or "bin/littoral" in part for part in child.cmdline()[:3]):
                child.kill()
