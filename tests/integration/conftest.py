"""Options of the integration tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-stream", action="store_true", help="learn every published stream, not one of each kind")
    parser.addoption("--every-method", action="store_true", help="run every method through Ray, not one of each kind")
