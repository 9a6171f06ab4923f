"""Paired comparisons against scipy, statsmodels and hand-worked cases; error rate and power in simulated runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from simulated_runs import SHARES, final_averages, true_average

from components.evaluation.matrix import MatrixError
from components.statistics.contributions import Contributions, Draw
from components.statistics.intervals import Variance, over_both, variance_of
from components.statistics.paired import (
    Comparison,
    compare,
    effect_size,
    flip_rows,
    kind_of,
    p_text,
    power_of,
    rows_needed,
    seeds_needed,
    short_verdict,
    verdict,
)

SIMULATIONS = 500
ONLY_SEEDS = Variance(
    num_runs=1, between_runs=1.0, between_rows=0.0, interplay=0.0, row_freedom=math.inf, freedom=math.inf
)


def one_task(rows: list[list[float]], seeds: tuple[int, ...] | None = None) -> Contributions:
    by_task = {"a": np.array(rows, dtype=float)}
    return Contributions(figure="final_average", draws=tuple(map(Draw, seeds or range(len(rows)))), by_task=by_task)


def two_methods(draws: np.random.Generator, num_runs: int, shift: float, seed_effect: float = 0.3) -> Contributions:
    """Differences of two methods on the same 100 rows a task; the second is better by `shift` in the logit."""
    levels = draws.normal(size=(len(SHARES), 1, 100))
    first, second = (
        final_averages(draws, num_runs=num_runs, num_rows=100, seed_effect=seed_effect, row_levels=levels, shift=better)
        for better in (0.0, shift)
    )
    return second.minus(first)


def test_flipping_rows_is_the_exact_sign_test() -> None:
    """9 rows won, 2 lost: statsmodels 0.15.0, mcnemar([[0, 9], [2, 0]], exact=True).pvalue = 0.0654296875."""
    pairs = one_task([[1.0] * 9 + [-1.0] * 2 + [0.0] * 30])
    assert flip_rows(pairs, resamples=99_999) == pytest.approx(0.0654, abs=0.004)


def test_pairing_takes_common_seeds_and_the_same_rows() -> None:
    first = one_task([[100, 0, 100], [100, 100, 100]], seeds=(0, 1))
    pairs = first.minus(one_task([[0, 0, 0], [0, 0, 100]], seeds=(2, 1)))
    assert pairs.draws == (Draw(1),)
    assert pairs.by_task["a"].tolist() == [[100, 100, 0]]
    with pytest.raises(MatrixError, match="seeds 0, 1 and 3 have none in common"):
        first.minus(one_task([[0, 0, 0]], seeds=(3,)))
    with pytest.raises(MatrixError, match="not scored on the same test rows of 'a'"):
        first.minus(one_task([[0, 0], [0, 0]]))


def test_effect_size_by_hand() -> None:
    """Differences 1, 1, 0, 0: mean 0.5, sample standard deviation sqrt(1 / 3)."""
    assert effect_size(one_task([[1.0, 1.0, 0.0, 0.0]])) == pytest.approx(0.5 / math.sqrt(1 / 3))
    assert effect_size(one_task([[2.0, 2.0]])) is None


@pytest.mark.parametrize(
    ("effect", "num_seeds", "power"),  # statsmodels 0.15.0: TTestPower().power(effect, num_seeds, 0.05)
    [(2.0, 3, 0.4707494), (2.0, 5, 0.9088849), (1.0, 10, 0.8030968), (0.5, 10, 0.2931756)],
)
def test_power_is_the_paired_t_tests(effect: float, num_seeds: int, power: float) -> None:
    assert power_of(effect, ONLY_SEEDS, num_seeds) == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize(
    ("effect", "seeds"),  # statsmodels 0.15.0: TTestPower().solve_power(effect, power=0.8, alpha=0.05), rounded up
    [(2.0, 5), (1.0, 10), (0.5, 34), (0.01, None)],
)
def test_seeds_needed(effect: float, seeds: int | None) -> None:
    assert seeds_needed(effect, ONLY_SEEDS) == seeds


def test_seeds_cannot_replace_rows() -> None:
    """Rows alone leave a standard error of 2; 80 % power takes 2.80 of them, so 2 points need 7.85 times the rows."""
    rows_only = replace(ONLY_SEEDS, between_rows=4.0, row_freedom=99.0)
    assert rows_needed(2.0, rows_only) == pytest.approx(7.849, abs=0.001)
    assert seeds_needed(2.0, rows_only) is None
    assert rows_needed(6.0, rows_only) is None


def test_methods_that_are_equal_are_called_different_in_5_percent() -> None:
    draws = np.random.default_rng(7)
    intervals = [over_both(two_methods(draws, 3, shift=0.0)) for _ in range(SIMULATIONS)]
    assert 0.03 < np.mean([interval.low > 0 or interval.high < 0 for interval in intervals]) < 0.07


def test_runs_that_are_equal_are_called_different_in_5_percent() -> None:
    draws = np.random.default_rng(8)
    p_values = [
        flip_rows(two_methods(draws, 1, shift=0.0, seed_effect=0.0), resamples=499, seed=number)
        for number in range(SIMULATIONS)
    ]
    assert 0.03 < np.mean(np.array(p_values) <= 0.05) < 0.07


def test_rows_alone_call_two_runs_of_one_method_different_too_often() -> None:
    """Why one seed never gives a verdict on methods."""
    draws = np.random.default_rng(9)
    p_values = [flip_rows(two_methods(draws, 1, shift=0.0, seed_effect=0.4), resamples=499) for _ in range(200)]
    assert np.mean(np.array(p_values) <= 0.05) > 0.12


def test_the_predicted_power_is_that_of_simulated_runs() -> None:
    draws = np.random.default_rng(10)
    shift, spread = 0.6, {"seed_effect": 0.3, "row_effect": 1.0}
    truth = true_average(shift=shift, **spread) - true_average(**spread)
    pairs = [two_methods(draws, 3, shift) for _ in range(200)]
    assert np.mean([rows.values().mean() for rows in pairs]) == pytest.approx(truth, abs=1.0)
    found = np.mean([over_both(rows).low > 0 for rows in pairs])
    variances = [variance_of(rows) for rows in pairs]
    typical = Variance(
        num_runs=3,
        between_runs=float(np.mean([one.between_runs for one in variances])),
        between_rows=float(np.mean([one.between_rows for one in variances])),
        interplay=float(np.mean([one.interplay for one in variances])),
        row_freedom=float(np.mean([one.row_freedom for one in variances])),
        freedom=math.inf,
    )
    assert 0.3 < found < 0.99
    assert power_of(truth, typical, 3) == pytest.approx(found, abs=0.12)
    assert power_of(truth, typical, 6) > power_of(truth, typical, 3)


def test_verdicts_in_words() -> None:
    draws = np.random.default_rng(11)
    better = draws.normal(10.0, 2.0, size=(3, 1)) + draws.normal(0.0, 20.0, size=(1, 100))
    far = compare(one_task(better.tolist()), one_task([[0.0] * 100] * 3))
    assert (
        verdict(far, "a", "b")
        == f"distinguishable: a ends {far.difference.estimate:.1f} points above b (p < 0.001, 3 seeds)."
    )
    near = replace(far, p=0.3, seeds_needed=9)
    assert verdict(near, "a", "b").startswith("not distinguishable at this size: a ends")
    assert verdict(near, "a", "b").endswith(
        "(p = 0.300, 3 seeds); about 6 more seeds needed if the difference is real."
    )
    assert "about 7.8 times as many test rows" in verdict(replace(near, seeds_needed=None, rows_needed=7.8), "a", "b")
    assert "too small to be found" in verdict(replace(near, seeds_needed=None, rows_needed=None), "a", "b")
    assert verdict(far, "a", "b", adjusted_p=0.2).startswith("not distinguishable")
    assert "a forgets" in verdict(replace(far, figure="forgetting"), "a", "b")
    single = compare(one_task([[100.0] * 20]), one_task([[0.0] * 10 + [100.0] * 10]))
    assert (single.rows_above, single.rows_below, single.p) == (10, 0, None)
    assert verdict(single, "a", "b").startswith(
        "no verdict, one seed: a ends 50.0 points above b, more than the test rows explain, p = 0.00"
    )
    equal = compare(one_task([[100.0, 0.0, 100.0]]), one_task([[0.0, 100.0, 100.0]]))
    assert verdict(equal, "a", "b") == "tie: a and b score the same on average (one seed)."
    same = compare(one_task([[1.0, 2.0]] * 3), one_task([[1.0, 2.0]] * 3))
    assert (same.p, same.difference.low, same.difference.high) == (1.0, 0.0, 0.0)
    assert verdict(same, "a", "b") == "tie: a and b score the same on every test row (3 seeds)."
    kept = replace(same, figure="forgetting")
    assert verdict(kept, "a", "b") == "tie: a and b forget the same on every test row (3 seeds)."


@pytest.mark.parametrize("orders", [((),), (("a", "b"), ("b", "a"))])
def test_two_seeds_give_no_verdict(orders: tuple[tuple[str, ...], ...]) -> None:
    """However large the difference and in however many orders."""
    draws = tuple(Draw(seed, order) for order in orders for seed in (0, 1))
    better = np.full((len(draws), 50), 100.0) - np.tile([0.0, 1.0], 25)
    first = Contributions(figure="final_average", draws=draws, by_task={"a": better})
    found = compare(first, Contributions(figure="final_average", draws=draws, by_task={"a": np.zeros_like(better)}))
    assert (found.p, found.num_seeds) == (None, 2)
    assert kind_of(found, found.claimed_p) == "no verdict"
    said = verdict(found, "a", "b")
    assert said.startswith("no verdict, two seeds")
    assert "run at least 3 seeds" in said
    assert "p " not in said


def test_two_runs_of_equal_methods_are_not_called_different_more_often_than_in_5_percent() -> None:
    """With 4 to 6 points between seeds the t with Satterthwaite's degrees of freedom did so in 10 %."""
    draws = np.random.default_rng(13)
    intervals = [over_both(two_methods(draws, 2, shift=0.0, seed_effect=0.4)) for _ in range(SIMULATIONS)]
    assert np.mean([interval.low > 0 or interval.high < 0 for interval in intervals]) < 0.06
    assert variance_of(one_task([[1.0, 3.0], [2.0, 7.0]])).freedom == 1.0


def test_kinds_of_verdicts() -> None:
    draws = np.random.default_rng(11)
    better = draws.normal(10.0, 2.0, size=(3, 1)) + draws.normal(0.0, 20.0, size=(1, 100))
    far = compare(one_task(better.tolist()), one_task([[0.0] * 100] * 3))
    assert kind_of(far, 0.001) == "better"
    assert kind_of(far, 0.2) == "not distinguishable"
    assert kind_of(replace(far, figure="forgetting"), 0.001) == "worse", "it forgets more"
    few = replace(far, p=0.3, seeds_needed=None, rows_needed=7.8)
    assert short_verdict(few, "a").endswith(", p = 0.300, needs 7.8 times as many rows)")
    assert short_verdict(far, "a", adjusted_p=0.012) == f"a (+{far.difference.estimate:.1f}, p = 0.012)"
    assert [p_text(p, name=False) for p in (None, 0.0, 0.00099, 0.001, 1.0)] == [
        "-", "< 0.001", "< 0.001", "0.001", "1.000",
    ]  # fmt: skip


def test_p_and_interval_agree() -> None:
    draws = np.random.default_rng(12)
    found: list[Comparison] = []
    for _ in range(10):
        first = final_averages(draws, num_runs=3, num_rows=30, row_effect=1.0)
        found.append(compare(first, final_averages(draws, num_runs=3, num_rows=30, shift=0.4)))
    agree = [
        (one.p is not None and one.p < 0.05) == (one.difference.low > 0 or one.difference.high < 0) for one in found
    ]
    assert all(agree)
