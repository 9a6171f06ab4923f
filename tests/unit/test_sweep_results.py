"""What a sweep makes of its trials: means over seeds, the best setting, the Pareto front.

python -m pytest tests/unit/test_sweep_results.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from components.core.errors import ConfigError
from components.tuning.objective import Objective, pareto_front, parse_objective
from components.tuning.results import ORDER, SEED, best_of, draw_pareto, front_of, settings_of, table, verdict
from components.tuning.trials import State, Trial

AVERAGE = parse_objective("final_average")
FORGETTING = parse_objective("forgetting")


def trial(
    rank: int, seed: int, average: float, forgetting: float, *, state: State = "finished", reason: str = ""
) -> Trial:
    figures = {"final_average": average, "forgetting": forgetting}
    figures |= {"trainable_parameters": 10.0 * rank, "train_s": 60.0}
    return Trial(
        name=f"rank-{rank}_seed-{seed}",
        values={"method.rank": rank, "seed": seed},
        state=state,
        learned=4 if state == "finished" else 2,
        figures=figures,
        reason=reason,
    )


TRIALS = [
    trial(4, 0, 40.0, 6.0),
    trial(8, 0, 50.0, 9.0),
    trial(4, 1, 44.0, 2.0),
    trial(8, 1, 48.0, 9.0),
    trial(16, 0, 90.0, 0.0, state="unfinished"),
    trial(16, 1, 90.0, 0.0),
    trial(2, 0, 30.0, 5.0),
    trial(2, 1, 30.0, 5.0),
]


def test_seeds_of_a_setting_are_one_line_with_mean_and_deviation() -> None:
    header, lines = table(settings_of(TRIALS), (AVERAGE,))
    assert header == ["method.rank", "final_average", "forgetting", "trainable", "training", "trials"]
    assert lines == [
        ["8", "49.0 ± 1.4", "9.0 ± 0.0", "80", "1.0 min", "2 finished"],
        ["4", "42.0 ± 2.8", "4.0 ± 2.8", "40", "1.0 min", "2 finished"],
        ["2", "30.0 ± 0.0", "5.0 ± 0.0", "20", "1.0 min", "2 finished"],
        ["16", "90.0 ± 0.0", "0.0 ± 0.0", "160", "1.0 min", "1 unfinished after 2 tasks, 1 finished"],
    ]


def test_orders_repeat_a_setting_where_they_were_asked_for() -> None:
    def ordered(one: Trial, *tasks: str) -> Trial:
        return replace(one, values={**one.values, ORDER: tasks})

    trials = [ordered(trial(4, 0, 40.0, 6.0), "a", "b"), ordered(trial(4, 0, 44.0, 2.0), "b", "a")]
    assert len(settings_of(trials)) == 2
    (both,) = settings_of(trials, (SEED, ORDER))
    assert (both.values, both.means["final_average"]) == ({"method.rank": 4}, 42.0)


def test_only_settings_that_ran_to_the_end_can_be_the_best() -> None:
    settings = settings_of(TRIALS)
    best = best_of(settings, AVERAGE)
    assert best is not None
    assert best.values == {"method.rank": 8}
    least = best_of(settings, FORGETTING)
    assert least is not None
    assert least.values == {"method.rank": 4}
    assert best_of(settings_of([trial(4, 0, 1.0, 1.0, state="failed", reason="no disk")]), AVERAGE) is None


def test_the_front_holds_what_nothing_beats() -> None:
    assert [each.values["method.rank"] for each in front_of(settings_of(TRIALS), (AVERAGE, FORGETTING))] == [4, 8]


def test_equal_points_are_both_on_the_front() -> None:
    figures = {name: {"final_average": 1.0, "forgetting": 2.0} for name in "ab"} | {
        "c": {"final_average": 1.0, "forgetting": 3.0}
    }
    assert pareto_front(figures, (AVERAGE, FORGETTING)) == ["a", "b"]


def test_the_picture_is_of_settings_that_ran_to_the_end() -> None:
    picture = draw_pareto(settings_of(TRIALS), (AVERAGE,))
    assert picture is not None
    assert picture.size == (700, 500)
    assert picture.getextrema() != ((255, 255),) * 3
    assert draw_pareto(settings_of(TRIALS[4:5]), (AVERAGE,)) is None


def test_a_failed_trial_says_why() -> None:
    _, lines = table(settings_of([trial(4, 0, 1.0, 1.0, state="failed", reason="no disk")]), (AVERAGE,))
    assert lines[0][-1] == "failed (no disk)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("forgetting", Objective(name="forgetting", mode="min")),
        ("final_average", Objective(name="final_average", mode="max")),
        ("train_s:max", Objective(name="train_s", mode="max")),
    ],
)
def test_a_metric_has_its_direction(text: str, expected: Objective) -> None:
    assert parse_objective(text) == expected


@pytest.mark.parametrize(
    ("text", "said"), [("forgeting", "Did you mean forgetting?"), ("bwt:up", "bwt:max or bwt:min")]
)
def test_a_wrong_metric_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        parse_objective(text)


def test_the_verdict_names_the_rows_and_calls_a_tie_a_tie() -> None:
    settings = settings_of(TRIALS)
    best = best_of(settings, AVERAGE)
    assert best is not None
    assert verdict(settings, best, AVERAGE, "validation") == "Best by final_average on validation rows: rank 8 (49.0)"
    close = settings_of([trial(4, 0, 42.04, 1.0), trial(8, 0, 41.96, 2.0), trial(2, 0, 41.9, 3.0)])
    first = best_of(close, AVERAGE)
    assert first is not None
    assert verdict(close, first, AVERAGE, "test") == (
        "A tie by final_average on test rows, all at 42.0: rank 4; rank 8. The one that is kept is rank 4."
    )
    unfinished = settings_of([trial(4, 0, 42.0, 1.0), trial(8, 0, 42.0, 2.0, state="unfinished")])
    assert verdict(unfinished, unfinished[0], AVERAGE, "test").startswith("Best by")
