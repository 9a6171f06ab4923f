"""Forecasts of a stream's end: a case worked by hand, what the intervals claim, and how often they hold."""

from __future__ import annotations

import numpy as np
import pytest

from components.evaluation.matrix import MatrixError, ScoreMatrix
from components.statistics.forecast import PastRun, distinct, forecast

NAMES = ["a", "b", "c", "d"]


def past_run(method: str, *rows: list[float | None]) -> PastRun:
    return PastRun(method=method, matrix=ScoreMatrix(NAMES[: len(rows[0])], list(rows), zero_shot=False))


def simulated(draws: np.random.Generator, number: int) -> PastRun:
    """A method of its own: how well it learns and how much it keeps are drawn, and every cell has noise."""
    skill, kept = draws.normal(0, 5), draws.uniform(0.7, 1.0)
    learned = np.array([40.0, 75.0, 30.0, 45.0]) + skill
    steps = np.arange(4)[:, None] - np.arange(4)
    cells = np.clip(learned * kept ** np.maximum(steps, 0) + draws.normal(0, 2, size=(4, 4)), 0, 100)
    rows = [[float(cells[i, j]) if j <= i else None for j in range(4)] for i in range(4)]
    return past_run(f"method {number}", *rows)


def test_a_forecast_by_hand() -> None:
    """Kept in the past: (100 + 60) / (100 + 80) = 8/9. Task b: 50 there, minus half of the 10 that a fell short."""
    seen = past_run("new", [70.0, None])
    made = forecast(seen, [past_run("old", [80.0, None], [60.0, 50.0])])
    assert made.num_learned == 1
    assert made.figures["final_average"].estimate == pytest.approx((70 * 8 / 9 + 45) / 2)
    assert made.figures["forgetting"].estimate == pytest.approx(70 - 70 * 8 / 9)


def test_a_whole_stream_is_forecast_as_it_ended() -> None:
    draws = np.random.default_rng(0)
    runs = [simulated(draws, number) for number in range(6)]
    made = forecast(runs[0], runs)
    summary = runs[0].matrix.summary()
    assert {name: one.estimate for name, one in made.figures.items()} == pytest.approx(
        {name: summary[name] for name in made.figures}
    )


@pytest.mark.parametrize(("num_past", "level"), [(3, 1.0), (4, 0.8), (9, 0.9), (19, 0.95), (30, 0.95)])
def test_an_interval_claims_what_its_past_supports(num_past: int, level: float) -> None:
    draws = np.random.default_rng(1)
    past = [simulated(draws, number) for number in range(num_past)]
    new = simulated(draws, 99)
    made = forecast(PastRun(method=new.method, matrix=new.matrix.at(2)), past)
    final = made.figures["final_average"]
    assert (made.num_past, final.level) == (num_past, pytest.approx(level))
    assert ((final.low, final.high) == (0.0, 100.0)) == (num_past < 4)


@pytest.mark.parametrize("num_learned", [1, 3])
def test_80_percent_intervals_hold_in_80_percent(num_learned: int) -> None:
    held = []
    for trial in range(100):
        draws = np.random.default_rng(trial)
        past, new = [simulated(draws, number) for number in range(14)], simulated(draws, 99)
        seen = PastRun(method=new.method, matrix=new.matrix.at(num_learned))
        final = forecast(seen, past, level=0.8).figures["final_average"]
        held.append(final.low <= new.matrix.final_average() <= final.high)
    assert 0.70 < np.mean(held) < 0.90


def test_a_methods_own_runs_and_equal_runs_do_not_count() -> None:
    one, other = past_run("x", [80.0, None], [60.0, 50.0]), past_run("y", [80.0, None], [60.0, 50.0])
    assert distinct([one, other]) == [one]
    with pytest.raises(MatrixError, match="finished runs of other methods"):
        forecast(past_run("x", [70.0, None]), [one])
    with pytest.raises(MatrixError, match="at least one learned task"):
        forecast(PastRun(method="z", matrix=ScoreMatrix(["a", "b"], [], zero_shot=False)), [one])
    with pytest.raises(MatrixError, match="cannot forecast one of z"):
        forecast(past_run("z", [70.0, None, None]), [one])
