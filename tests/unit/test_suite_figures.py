"""Figures of general suites, by hand."""

from __future__ import annotations

from typing import get_args

import pytest

from components.data.suite import Scoring
from components.evaluation.predictions import Prediction
from components.evaluation.suite_figures import FIGURES, figures, said_yes


def row(sample_id: str, score: float, prediction: str = "", answer: str = "yes") -> Prediction:
    return Prediction(after="", task="", sample_id=sample_id, prediction=prediction, answers=(answer,), score=score)


def said(sample_id: str, prediction: str, answer: str) -> Prediction:
    return row(sample_id, float(prediction.casefold() == answer), prediction, answer)


def test_every_scoring_has_its_figures() -> None:
    assert set(FIGURES) == set(get_args(Scoring))
    for scoring in FIGURES:
        found = figures(scoring, [said("a/b/0-1", "yes", "yes"), said("a/b/1-1", "no", "yes")])
        assert 0.0 <= found["score"] <= 100.0


def test_the_mean_and_its_subsets() -> None:
    assert figures("mean", [row("a/x/1", 1.0), row("a/x/2", 0.5)]) == {"score": 75.0}
    assert figures("mean", [row("a/x/1", 1.0), row("a/y/1", 0.0), row("b/x/1", 0.0)]) == {
        "score": pytest.approx(100 / 3),
        "a": 50.0,
        "b": 0.0,
    }


@pytest.mark.parametrize(
    ("reply", "expected"),
    [("Yes, there is.", True), ("No, it is", False), ("There is not. Yes", False), ("nothing", True), ("", True)],
)
def test_pope_reads_replies_as_its_script_does(reply: str, expected: bool) -> None:
    assert said_yes(reply) is expected


def test_popes_figures() -> None:
    """random: of 3 called yes 2 are, and one no is right; popular: always yes, over one yes and one no."""
    random = [("yes", "yes"), ("Yes", "yes"), ("yes", "no"), ("no", "no")]
    popular = [("yes", "yes"), ("yes", "no")]
    rows = [said(f"random/p/{at}", *pair) for at, pair in enumerate(random)]
    rows += [said(f"popular/p/{at}", *pair) for at, pair in enumerate(popular)]
    found = figures("pope", rows)
    assert found["f1 random"] == pytest.approx(80.0)  # precision 2/3, recall 1
    assert found["f1 popular"] == pytest.approx(200 / 3)  # precision 1/2, recall 1
    assert found["score"] == found["f1"] == pytest.approx((80 + 200 / 3) / 2)
    assert found["accuracy"] == pytest.approx((75 + 50) / 2)
    assert found["precision"] == pytest.approx((200 / 3 + 50) / 2)
    assert found["recall"] == 100.0
    assert found["yes_ratio"] == pytest.approx((75 + 100) / 2)
    silent = figures("pope", [said("random/p/1", "no", "yes"), said("random/p/2", "no", "no")])
    assert (silent["score"], silent["yes_ratio"], silent["recall"]) == (0.0, 0.0, 0.0)
    assert "precision" not in silent, "nothing was called yes"


def test_mmes_points() -> None:
    """existence: 3 of 4 right, one of two pictures whole: 75 + 50. code_reasoning: all right: 200."""
    rows = [row("existence/a/1", 1.0), row("existence/a/2", 1.0), row("existence/b/1", 1.0), row("existence/b/2", 0.0)]
    rows += [row("code_reasoning/c/1", 1.0), row("code_reasoning/c/2", 1.0)]
    found = figures("mme", rows)
    assert (found["existence"], found["code_reasoning"]) == (125.0, 200.0)
    assert (found["perception"], found["cognition"]) == (125.0, 200.0)
    assert found["score"] == pytest.approx(100 * 325 / 400)


def test_circular_questions_need_every_order() -> None:
    rows = [row("ocr/1/0", 1.0), row("ocr/1/1000000", 0.0), row("ocr/2/0", 1.0), row("logic/3/0", 1.0)]
    assert figures("grouped", rows) == {
        "score": pytest.approx(200 / 3),
        "ocr": 50.0,
        "logic": 100.0,
        "vanilla": 75.0,
    }


def test_hallusions_pairs_and_figures() -> None:
    """Set 0 of VD: question 0 right with figures 0 and 1, question 1 with figure 0 only. VS: no figure, wrong."""
    rows = [
        row("VD/illusion_0/0-0", 1.0),
        row("VD/illusion_0/0-1", 1.0),
        row("VD/illusion_0/1-0", 1.0),
        row("VD/illusion_0/1-1", 0.0),
        row("VS/chart_0/0-0", 0.0),
        row("VS/chart_0/1-0", 1.0),
    ]
    found = figures("hallusion", rows)
    assert found["score"] == pytest.approx(400 / 6)
    assert found["question_pair"] == pytest.approx(100 / 3)
    assert found["figure"] == pytest.approx(200 / 3)  # VD 0 and VS 1 whole, VD 1 not; VS without a figure is none
    assert (found["VD"], found["VS"]) == (75.0, 50.0)


def test_strict_counts_whole_rows() -> None:
    assert figures("constraints", [row("a/x/1", 1.0), row("a/x/2", 0.5)]) == {"score": 75.0, "all_fulfilled": 50.0}
