"""The toy tasks are encoded once for all contract tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toy_tasks import Toy, toy_tasks

from components.methods import METHODS


@pytest.fixture(scope="session")
def encoded() -> list[Toy]:
    return toy_tasks()


@pytest.fixture
def toys(encoded: list[Toy], request: pytest.FixtureRequest) -> list[Toy]:
    """Both tasks; their batches name the task for a method that has to be told it."""
    if not METHODS[request.node.callspec.params["name"]].needs_task_id:
        return encoded
    return [
        replace(
            toy,
            batch=replace(toy.batch, oracle_task=toy.info.name),
            prompts=replace(toy.prompts, oracle_task=toy.info.name),
        )
        for toy in encoded
    ]
