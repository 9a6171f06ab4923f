"""Forgetting in two parts, worked by hand."""

from __future__ import annotations

import pytest

from components.evaluation.forgetting import split_forgetting, split_if_known
from components.evaluation.matrix import MatrixError, ScoreMatrix

TASKS = ["a", "b", "c"]
# Own routing: a falls 90 -> 50, b 80 -> 60. With the task known: a falls 90 -> 80, b stays at 85.
OWN = ScoreMatrix(TASKS, [[90, None, None], [70, 80, None], [50, 60, 70]], zero_shot=False)
ORACLE = ScoreMatrix(TASKS, [[90, None, None], [85, 85, None], [80, 85, 75]], zero_shot=False)


def test_the_parts_are_those_of_the_definition_and_add_up() -> None:
    split = split_forgetting(OWN, ORACLE, "oracle")
    assert split["forgetting_weight_drift"] == pytest.approx((10 + 0) / 2)
    # gaps at the end 30 and 25, when new 0 and 5
    assert split["forgetting_routing_error"] == pytest.approx((30 + 20) / 2)
    assert sum(split.values()) == pytest.approx(OWN.forgetting("diagonal"))


def test_nothing_is_said_before_two_tasks_or_without_an_oracle() -> None:
    assert split_if_known(OWN.at(1), {"oracle": ORACLE.at(1)}) == {}
    assert split_if_known(OWN, {"oracle": None}) == {}
    with pytest.raises(MatrixError, match="at least 2"):
        split_forgetting(OWN.at(1), ORACLE.at(1), "oracle")


def test_repaired_replies_split_it_into_format_drift_and_knowledge_loss() -> None:
    """The same numbers as another reading: 5 points of what is forgotten are still known."""
    split = split_if_known(OWN, {"repaired": ORACLE})
    assert split == pytest.approx({"forgetting_format_drift": 25.0, "forgetting_knowledge_loss": 5.0})
    assert list(split_if_known(OWN, {"repaired": OWN, "oracle": ORACLE, "compat": OWN})) == [
        "forgetting_routing_error",
        "forgetting_weight_drift",
        "forgetting_format_drift",
        "forgetting_knowledge_loss",
    ]
