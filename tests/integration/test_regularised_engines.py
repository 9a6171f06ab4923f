"""Penalties and teachers under real engines: ZeRO 2 and 3 on two workers give plain torch's losses on one.

python -m pytest tests/integration/test_regularised_engines.py
"""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from engine_job import UPDATES, Job, losses_of

from components.methods.base import MethodConfig, SequentialLoraConfig
from components.methods.ewc import EwcConfig
from components.methods.lwf import LwfConfig

TOLERANCE = 2e-4  # as in test_engine.py
METHODS: dict[str, MethodConfig] = {
    "ewc": EwcConfig(rank=4, penalty_weight=30.0),
    "lwf": LwfConfig(rank=4, distillation_weight=10.0),
}
every_method = pytest.mark.parametrize("name", METHODS)


@functools.cache
def reference(name: str) -> list[float]:
    return losses_of(Job(stage=None, method=METHODS[name]))


@every_method
def test_the_second_task_is_not_learned_as_by_sequential_lora(name: str) -> None:
    """Otherwise the comparison below would prove nothing about the extra term."""
    plain, regularised = losses_of(Job(stage=None, method=SequentialLoraConfig(rank=4))), reference(name)
    assert regularised[: UPDATES + 1] == pytest.approx(plain[: UPDATES + 1], rel=TOLERANCE)
    assert abs(regularised[-1] / plain[-1] - 1) > 100 * TOLERANCE


@every_method
@pytest.mark.parametrize(
    "job",
    [
        Job(stage=2, world_size=2, accumulation=2),
        Job(stage=3, world_size=2, accumulation=2),
        Job(stage=3, world_size=2, interrupt_at=3),
    ],
    ids=["zero-2", "zero-3", "zero-3-interrupted"],
)
def test_equal_to_plain_torch_on_one_worker(name: str, job: Job) -> None:
    assert losses_of(replace(job, method=METHODS[name])) == pytest.approx(reference(name), rel=TOLERANCE)
    assert len(reference(name)) == 2 * (UPDATES + 1)
