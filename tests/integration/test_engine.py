"""One worker and two, every ZeRO stage, with and without an interruption: the same losses and gradient norms.

python -m pytest tests/integration/test_engine.py
"""

from __future__ import annotations

import pytest
from engine_job import Job, losses_of

TOLERANCE = 2e-4  # float32 sums in another order, amplified by eleven updates at a learning rate of 1e-2


PLAIN = Job(stage=None, norms=True)
JOBS = [
    Job(stage=0, norms=True),
    Job(stage=2, norms=True),
    Job(stage=3, norms=True),
    Job(stage=None, world_size=2, norms=True),
    Job(stage=0, world_size=2, interrupt_at=3, norms=True),
    Job(stage=2, world_size=2, accumulation=2, norms=True),
    Job(stage=2, world_size=2, interrupt_at=3, norms=True),
    Job(stage=3, world_size=2, interrupt_at=3, norms=True),
    Job(stage=3, checkpointing=True, norms=True),
]
# Beside bfloat16 weights one worker's sums are in the same order under every engine.
NARROW = {compute: Job(stage=None, checkpointing=True, compute=compute) for compute in ("float32", "bfloat16")}
NARROW_JOBS = [
    Job(stage=0, checkpointing=True, compute="bfloat16"),
    Job(stage=2, checkpointing=True, compute="bfloat16"),
    Job(stage=3, checkpointing=True, compute="bfloat16"),
]


@pytest.fixture(scope="module")
def losses() -> dict[Job, list[float]]:
    return losses_of([PLAIN, *JOBS, *NARROW.values(), *NARROW_JOBS])


def test_the_reference_learns(losses: dict[Job, list[float]]) -> None:
    assert losses[PLAIN][4] < 0.7 * losses[PLAIN][0]


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_equal_to_plain_torch_on_one_worker(job: Job, losses: dict[Job, list[float]]) -> None:
    assert losses[job] == pytest.approx(losses[PLAIN], rel=TOLERANCE)


@pytest.mark.parametrize("job", NARROW_JOBS, ids=str)
def test_bfloat16_compute_is_the_same_under_every_stage(job: Job, losses: dict[Job, list[float]]) -> None:
    assert job.compute is not None
    assert losses[job] == pytest.approx(losses[NARROW[job.compute]], rel=TOLERANCE)


def test_bfloat16_compute_learns_as_float32_compute_does(losses: dict[Job, list[float]]) -> None:
    assert losses[NARROW["bfloat16"]] == pytest.approx(losses[NARROW["float32"]], rel=0.05)
    assert losses[NARROW["bfloat16"]] != losses[NARROW["float32"]]
