"""Tests that need a GPU; without one they are skipped. `prove.py` measures what they test, and more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / folder) for folder in ("contract", "unit")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:  # of all folders that this run collects
        if item.path.parent == TESTS / "gpu":
            item.add_marker(pytest.mark.skip(reason="PyTorch sees no GPU"))
