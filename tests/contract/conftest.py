"""The toy tasks are encoded once for all contract tests."""

from __future__ import annotations

import pytest
from toy_tasks import Toy, toy_tasks


@pytest.fixture(scope="session")
def toys() -> list[Toy]:
    return toy_tasks()
