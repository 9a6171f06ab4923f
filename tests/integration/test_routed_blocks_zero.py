"""SMoLoRA and CL-MoE under DeepSpeed: routers and blocks that a layer owns, and experts averaged after a task.

python -m pytest tests/integration/test_routed_blocks_zero.py
"""

from __future__ import annotations

from functools import lru_cache

import pytest
from engine_job import Job, losses_of

from components.methods.base import MethodConfig
from components.methods.cl_moe import ClMoeConfig
from components.methods.smolora import SmoloraConfig

TOLERANCE = 2e-4  # as in test_engine.py: float32 sums in another order, amplified by the updates
METHODS = {
    "smolora": SmoloraConfig(sentence_encoder="hash", router="straight_through"),
    "cl_moe": ClMoeConfig(sentence_encoder="hash", statistics="layer"),
}


@lru_cache
def reference(method: MethodConfig) -> list[float]:
    return losses_of(Job(stage=None, method=method))


@pytest.mark.parametrize("name", METHODS)
def test_the_reference_learns(name: str) -> None:
    losses = reference(METHODS[name])
    assert losses[4] < 0.7 * losses[0]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "options",
    [
        {"stage": 0},
        {"stage": 2, "world_size": 2, "accumulation": 2},
        {"stage": 3, "world_size": 2, "interrupt_at": 3, "checkpointing": True},
    ],
    ids=str,
)
def test_equal_to_plain_torch_on_one_worker(name: str, options: dict[str, int]) -> None:
    job = Job(method=METHODS[name], **options)  # type: ignore[arg-type]
    assert losses_of(job) == pytest.approx(reference(METHODS[name]), rel=TOLERANCE)
