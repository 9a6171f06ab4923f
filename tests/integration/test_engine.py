"""One worker and two, every ZeRO stage, with and without an interruption: the same losses.

python -m pytest tests/integration/test_engine.py
"""

from __future__ import annotations

import pytest
from engine_job import Job, losses_of

TOLERANCE = 2e-4  # float32 sums in another order, amplified by eleven updates at a learning rate of 1e-2


PLAIN = Job(stage=None)
JOBS = [
    Job(stage=0),
    Job(stage=2),
    Job(stage=3),
    Job(stage=None, world_size=2),
    Job(stage=0, world_size=2, interrupt_at=3),
    Job(stage=2, world_size=2, accumulation=2),
    Job(stage=2, world_size=2, interrupt_at=3),
    Job(stage=3, world_size=2, interrupt_at=3),
    Job(stage=3, checkpointing=True),
]


@pytest.fixture(scope="module")
def losses() -> dict[Job, list[float]]:
    return losses_of([PLAIN, *JOBS])


def test_the_reference_learns(losses: dict[Job, list[float]]) -> None:
    assert losses[PLAIN][4] < 0.7 * losses[PLAIN][0]


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_equal_to_plain_torch_on_one_worker(job: Job, losses: dict[Job, list[float]]) -> None:
    assert losses[job] == pytest.approx(losses[PLAIN], rel=TOLERANCE)
