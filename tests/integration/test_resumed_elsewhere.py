"""A task that is interrupted twice and goes on with other workers, ZeRO stages and micro-batches learns the same.

    python -m pytest tests/integration/test_resumed_elsewhere.py

The reference is plain torch on one worker, undisturbed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from engine_job import UPDATES, Job, Mark, losses_of

from components.methods.base import MethodConfig
from components.methods.continual_llava import ContinualLlavaConfig
from components.methods.lcia import LciaConfig
from components.methods.sequential_lora import SequentialLoraConfig

pytestmark = pytest.mark.long  # test_engine.py and test_zero_stages.py learn across world sizes and stages

TOLERANCE = 2e-4  # as in test_engine.py: float32 sums in another order, amplified by the updates
# One adapter; slots, keys and a scalar at a rate of its own; an average that accumulates during the task.
METHODS: Mapping[str, MethodConfig] = {
    "sequential_lora": SequentialLoraConfig(rank=4),
    "continual_llava": replace(ContinualLlavaConfig.tiny(), contextual_learning_rate=0.5),
    "lcia": replace(LciaConfig.tiny(), threshold=0.0),  # the second task averages into the group of the first
}
PLAIN = Job(stage=None, pictures=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[float], list[float]]]:
    """By method: losses of the reference, and of three sessions one after another."""
    folder = tmp_path_factory.mktemp("marks")
    plain = {name: replace(PLAIN, method=method) for name, method in METHODS.items()}
    # The second task is the one that is interrupted: it carries what the first has left.
    first, second = Mark(task=1, update=2), Mark(task=1, update=4)
    sessions = (
        Job(stage=2, world_size=2, accumulation=2, pictures=True, until=first),
        Job(stage=3, world_size=1, accumulation=4, checkpointing=True, pictures=True, since=first, until=second),
        Job(stage=0, world_size=2, pictures=True, since=second),
    )
    parts: dict[str, list[float]] = {name: [] for name in METHODS}
    losses: dict[Job, list[float]] = {}
    for session in sessions:
        jobs = {name: replace(session, method=method, marks=folder / name) for name, method in METHODS.items()}
        beside = plain.values() if session.world_size == PLAIN.world_size else ()  # in the same process
        losses |= losses_of([*jobs.values(), *beside])
        for name, job in jobs.items():
            parts[name] += losses[job]
    return {name: (losses[plain[name]], parts[name]) for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_three_sessions_learn_what_one_learns(name: str, found: dict[str, tuple[list[float], list[float]]]) -> None:
    expected, together = found[name]
    assert len(expected) == 2 * (UPDATES + 1)
    assert expected[UPDATES - 1] < (1 - 10 * TOLERANCE) * expected[0]
    assert together == pytest.approx(expected, rel=TOLERANCE)
