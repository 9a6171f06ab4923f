"""LCIA's averages are the same under every engine: the released code loses them above ZeRO stage 0.

python -m pytest tests/integration/test_lcia_zero.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lcia_job import UPDATES, LciaJob, outcomes_of
from torch import Tensor

from components.methods.common.balance import STATISTICS
from components.methods.common.balance_options import Rule

pytestmark = pytest.mark.long  # test_zero_stages.py asks the same of one of each kind

FALLBACK, MEDIAN = STATISTICS.index("ema_fallback"), STATISTICS.index("ema_old_p50")


PLAIN = LciaJob(stage=None)
JOBS = [
    LciaJob(stage=None, world_size=2),
    LciaJob(stage=None, world_size=2, accumulation=2, interrupt_at=2),
    LciaJob(stage=0, world_size=2, accumulation=2),
    LciaJob(stage=2, world_size=2),
    LciaJob(stage=2, world_size=2, accumulation=2, interrupt_at=2),
    LciaJob(stage=3, world_size=2, interrupt_at=2),
    LciaJob(stage=3, world_size=2, accumulation=2),
    LciaJob(stage=0, world_size=2, interrupt_at=2, balance="paper"),
    LciaJob(stage=2, world_size=2, balance="paper"),
    LciaJob(stage=3, world_size=2, accumulation=2, interrupt_at=2, balance="paper"),
    LciaJob(stage=2, world_size=2, interrupt_at=2, start="after_first_step"),
    LciaJob(stage=3, world_size=2, accumulation=2, interrupt_at=2, start="after_first_step"),
]


@pytest.fixture(scope="module")
def outcomes() -> dict[LciaJob, dict[str, Tensor]]:
    return outcomes_of([PLAIN, replace(PLAIN, balance="paper"), replace(PLAIN, start="after_first_step"), *JOBS])


def values_of(outcome: dict[str, Tensor], part: str) -> Tensor:
    return torch.cat([value.flatten() for name, value in sorted(outcome.items()) if name.startswith(f"{part}/")])


@pytest.mark.parametrize("balance", ["official_code", "paper"])
def test_the_reference_averages_by_its_formula(balance: Rule, outcomes: dict[LciaJob, dict[str, Tensor]]) -> None:
    """Only then do equal ends mean equal gradients and parameters: the fallback needs neither."""
    outcome = outcomes[replace(PLAIN, balance=balance)]
    statistics = outcome["statistics"]
    assert statistics.shape == (UPDATES, len(STATISTICS))
    assert statistics[0, FALLBACK] == 1.0  # no gradient before the first step
    assert bool((statistics[1:, FALLBACK] < 0.3).all())
    assert bool((statistics[1:, MEDIAN] - 0.9).abs().gt(1e-3).all())
    start, live, end = (values_of(outcome, part) for part in ("start", "live", "end"))
    moved, ended = (live - start).abs().sum(), (end - start).abs().sum()
    assert 0.02 * moved < ended < 0.98 * moved


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_equal_to_plain_torch_on_one_worker(job: LciaJob, outcomes: dict[LciaJob, dict[str, Tensor]]) -> None:
    found, expected = outcomes[job], outcomes[replace(PLAIN, balance=job.balance, start=job.start)]
    assert found.keys() == expected.keys()
    for part in ("start", "live", "end"):
        ours, theirs = values_of(found, part), values_of(expected, part)
        assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max()), part
    # the averages' own way is compared against its own length, not against the weights' size
    ours, theirs = (values_of(outcome, "end") - values_of(outcome, "start") for outcome in (found, expected))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4
    torch.testing.assert_close(found["statistics"], expected["statistics"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-5, atol=0)
