"""Intervals against scipy and hand-worked cases, and how often they hold the true value in simulated runs.

The seeds of the simulations are fixed: a change of the formulas moves the coverage, a rerun does not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from simulated_runs import final_averages, true_average

from components.evaluation.figure_names import ALIASES, WITHOUT_BOUNDARIES
from components.evaluation.matrix import MatrixError, ScoreMatrix
from components.runs.results import read_run, scored
from components.statistics.contributions import Contributions, Draw, ScoredRun, contributions, weights_of
from components.statistics.intervals import (
    Interval,
    StatisticsError,
    holm,
    over_both,
    over_rows,
    variance_of,
)

RECORDS = sorted((Path(__file__).resolve().parents[2] / "docs" / "results" / "mini-coast-domain").glob("*.json"))
SIMULATIONS = 1000  # a coverage of 95 % is then measured to 0.7 points


def coverage(intervals: list[Interval], truth: float) -> float:
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def one_task(rows: list[list[float]]) -> Contributions:
    by_task = {"a": np.array(rows, dtype=float)}
    return Contributions(figure="final_average", draws=tuple(map(Draw, range(len(rows)))), by_task=by_task)


@pytest.mark.parametrize("figure", [name for name in ALIASES if name not in WITHOUT_BOUNDARIES])
def test_weights_give_every_figure_of_the_matrix(figure: str) -> None:
    cells = np.random.default_rng(3).uniform(0, 100, size=(5, 4))
    matrix = ScoreMatrix(["a", "b", "c", "d"], cells.tolist(), zero_shot=True)
    assert (weights_of(figure, matrix) * matrix.values).sum() == pytest.approx(matrix.summary()[figure])


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
@pytest.mark.parametrize("figure", ["final_average", "forgetting", "mean_average", "bwt"])
def test_the_rows_of_a_record_add_up_to_its_figures(path: Path, figure: str) -> None:
    """Joint training is scored once, so it has a final average and nothing else."""
    recorded = read_run(path)
    run, summary = scored(recorded), recorded.matrix.summary()
    assert (figure in summary) == (figure == "final_average" or recorded.config.method.data_scope != "union")
    if figure in summary:
        assert contributions(figure, [run]).values() == pytest.approx([summary[figure]], abs=1e-5)


def test_rows_that_do_not_belong_are_refused() -> None:
    matrix = ScoreMatrix(["a", "b"], [[50.0, None], [0.0, 50.0]], zero_shot=False)
    items = {"a": {"a": [1.0, 0.0]}, "b": {"a": [0.0, 0.0], "b": [1.0, 0.0]}}
    run = ScoredRun(seed=0, matrix=matrix, items=items)
    assert contributions("forgetting", [run]).by_task["a"].tolist() == [[100.0, 0.0]]
    with pytest.raises(MatrixError, match="have no 'zero_shot_average'; they have final_average"):
        contributions("zero_shot_average", [run])
    with pytest.raises(MatrixError, match=r"'a' after 'b' .* are missing, the score matrix says 0.00"):
        contributions("final_average", [ScoredRun(seed=0, matrix=matrix, items={"b": {"b": [1.0, 0.0]}})])
    changed = ScoredRun(seed=0, matrix=matrix, items=items | {"b": {"a": [1.0, 0.0], "b": [1.0, 0.0]}})
    with pytest.raises(MatrixError, match=r"average 50.00, the score matrix says 0.00"):
        contributions("final_average", [changed])
    longer = {"a": {"a": [1.0, 0.0] * 2}, "b": {"a": [0.0] * 4, "b": [1.0, 0.0] * 2}}
    with pytest.raises(MatrixError, match=r"\[2, 4\] test rows"):
        contributions("final_average", [run, ScoredRun(seed=1, matrix=matrix, items=longer)])
    with pytest.raises(MatrixError, match="at least two test rows"):
        one_task([[1.0]])


def test_orders_are_draws_whose_last_tasks_add_nothing_to_forgetting() -> None:
    """By hand: of a, b the first forgets 50 of a; of b, a the second forgets 100 of b. Pairs need seed and order."""
    right, wrong, half = [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]
    first = ScoredRun(
        seed=0,
        matrix=ScoreMatrix(["a", "b"], [[100.0, None], [50.0, 100.0]], zero_shot=False),
        items={"a": {"a": right}, "b": {"a": half, "b": right}},
    )
    second = ScoredRun(
        seed=0,
        matrix=ScoreMatrix(["b", "a"], [[100.0, None], [0.0, 100.0]], zero_shot=False),
        items={"b": {"b": right}, "a": {"b": wrong, "a": right}},
    )
    both = contributions("forgetting", [first, second])
    assert both.by_task["a"].tolist() == [[0.0, 100.0], [0.0, 0.0]]
    assert both.by_task["b"].tolist() == [[0.0, 0.0], [100.0, 100.0]]
    assert both.values().tolist() == [50.0, 100.0]
    alone = contributions("forgetting", [first])
    assert both.minus(alone).draws == (Draw(0, ("a", "b")),)
    assert not both.minus(alone).values().any()
    assert not alone.minus(both).values().any()
    with pytest.raises(MatrixError, match=r"0 \(a, b\) and 0 \(b, a\) have none in common"):
        alone.minus(contributions("forgetting", [second]))


def test_over_rows_is_scipys_stratified_bootstrap() -> None:
    """Two independent resamplings of 9999: their ends differ by some hundredths of the interval's width."""
    figure = final_averages(np.random.default_rng(5), num_runs=1, num_rows=100)
    samples = [rows[0] for rows in figure.by_task.values()]
    expected = stats.bootstrap(
        samples,
        lambda *drawn, axis: np.sum([rows.mean(axis=axis) for rows in drawn], axis=0),
        method="percentile",
        vectorized=True,
        batch=500,
    ).confidence_interval
    interval = over_rows(figure)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.4)
    assert interval == over_rows(figure), "the same seed draws the same rows"
    assert interval.high - interval.low > 8


def test_the_variance_in_parts_by_hand() -> None:
    """Runs [1, 0] and [1, 1]: figures 0.5 and 1, row means 1 and 0.5, and a rest of 0.25 in every cell."""
    variance = variance_of(one_task([[1, 0], [1, 1]]))
    assert (variance.between_runs, variance.between_rows, variance.interplay) == (0.0625, 0.0625, 0.0625)
    assert variance.total == 0.0625
    with pytest.raises(StatisticsError, match="at least two seeds"):
        over_both(one_task([[1, 0]]))


def test_over_both_has_the_simple_intervals_as_its_limits() -> None:
    """Rows that never differ leave the t interval over seeds; runs that never differ that of the rows' mean."""
    seeds = [40.0, 44.0, 45.0]
    alike = over_both(one_task([[score] * 50 for score in seeds]))
    expected = stats.ttest_1samp(seeds, 0.0).confidence_interval(0.95)
    assert (alike.low, alike.high) == pytest.approx((expected.low, expected.high))
    rows = np.random.default_rng(0).uniform(0, 100, size=40)
    same = over_both(one_task([rows.tolist()] * 3))
    expected = stats.ttest_1samp(rows, 0.0).confidence_interval(0.95)
    assert (same.low, same.high) == pytest.approx((expected.low, expected.high))
    nothing = over_both(one_task([[7.0, 7.0]] * 2))
    assert (nothing.low, nothing.high) == (7.0, 7.0)


@pytest.mark.parametrize("num_rows", [40, 100])
def test_coverage_over_rows(num_rows: int) -> None:
    draws = np.random.default_rng(num_rows)
    figures = [final_averages(draws, num_runs=1, num_rows=num_rows) for _ in range(SIMULATIONS)]
    intervals = [over_rows(figure, resamples=999, seed=number) for number, figure in enumerate(figures)]
    assert 0.93 < coverage(intervals, true_average()) < 0.97


@pytest.mark.parametrize(("num_runs", "seed_effect"), [(3, 0.3), (3, 0.6), (5, 0.3)])
def test_coverage_over_rows_and_seeds(num_runs: int, seed_effect: float) -> None:
    draws = np.random.default_rng(num_runs)
    intervals = [
        over_both(final_averages(draws, num_runs=num_runs, num_rows=100, seed_effect=seed_effect, row_effect=1.0))
        for _ in range(SIMULATIONS)
    ]
    assert 0.93 < coverage(intervals, true_average(seed_effect=seed_effect, row_effect=1.0)) < 0.97


@pytest.mark.parametrize(
    ("given", "expected"),  # statsmodels 0.15.0: multipletests(given, method="holm")[1]
    [
        ([0.01, 0.04, 0.03, 0.005, 0.2], [0.04, 0.09, 0.09, 0.025, 0.2]),
        ([0.3, 0.01, 0.6, 0.02], [0.6, 0.04, 0.6, 0.06]),
    ],
)
def test_holm(given: list[float], expected: list[float]) -> None:
    assert holm(given) == pytest.approx(expected)
