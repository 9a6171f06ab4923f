"""Penalties and teachers under real engines: ZeRO 2 and 3 on two workers give plain torch's losses on one.

python -m pytest tests/integration/test_regularised_engines.py
"""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from engine_job import UPDATES, Job, losses_of

from components.methods.base import MethodConfig
from components.methods.ewc import EwcConfig
from components.methods.lwf import LwfConfig
from components.methods.o_lora import OLoraConfig

TOLERANCE = 2e-4  # as in test_engine.py
EWC = EwcConfig(rank=4, penalty_weight=30.0)
LWF = LwfConfig(rank=4, distillation_weight=10.0)
O_LORA = OLoraConfig(rank=4, alpha=8.0, orthogonality_weight=0.1, norm_weight=0.01)
METHODS: dict[str, MethodConfig] = {"ewc": EWC, "lwf": LWF, "o_lora": O_LORA}
WITHOUT: dict[str, MethodConfig] = {
    "ewc": replace(EWC, penalty_weight=0.0),
    "lwf": replace(LWF, distillation_weight=0.0),
    "o_lora": replace(O_LORA, orthogonality_weight=0.0),
}
every_method = pytest.mark.parametrize("name", METHODS)


@functools.cache
def reference(name: str) -> list[float]:
    return losses_of(Job(stage=None, method=METHODS[name]))


@every_method
def test_the_extra_term_changes_the_second_task(name: str) -> None:
    """Otherwise the comparison below would prove nothing about it."""
    without, regularised = losses_of(Job(stage=None, method=WITHOUT[name])), reference(name)
    assert regularised[: UPDATES + 1] == pytest.approx(without[: UPDATES + 1], rel=TOLERANCE)
    assert abs(regularised[-1] / without[-1] - 1) > 50 * TOLERANCE


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
