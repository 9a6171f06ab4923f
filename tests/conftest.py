"""Before any test imports a library: no hub access, one thread (the models are tiny), and as a run itself sets it."""

from __future__ import annotations

import os

from pipelines.command import quiet_environment

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything a test loads is built in code or installed
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other took half of the suite's time
quiet_environment()


def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: more processes than this spend their time importing."""
    return min(4, os.cpu_count() or 1)
