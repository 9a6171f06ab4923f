"""A report's first sentences: what the majority answer beats is told first and praised nowhere; a tie is a tie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from components.evaluation.matrix import ScoreMatrix
from components.methods.sequential_lora import SequentialLoraConfig
from components.reporting.curves import curves
from components.reporting.groups import grouped, named
from components.reporting.summary import below_majority, summary_sentences
from components.runs.results import FinishedRun, TaskFacts, read_run
from components.training.config import RunConfig

RECORDS = Path(__file__).resolve().parents[2] / "docs" / "results"
MAJORITY = {"a": 20.0, "b": 30.0}
Rows = list[list[float | None]]


def run_of(rows: Rows, *, majority: dict[str, float] | None = None, seed: int = 0) -> FinishedRun:
    facts = {name: TaskFacts(identity=name, majority=score) for name, score in (majority or MAJORITY).items()}
    config = RunConfig(run_id=f"r{seed}", seed=seed, method=SequentialLoraConfig())
    matrix = ScoreMatrix(["a", "b"], rows, zero_shot=False)
    return FinishedRun(
        path=Path("x"),
        config=config,
        stream_digest="d",
        stream_name=config.stream.name,
        finished="",
        matrix=matrix,
        oracle=None,
        cost=None,
        tasks=facts,
    )


def said(**lines: Rows) -> list[str]:
    groups = {name: [run_of(rows)] for name, rows in lines.items()}
    return summary_sentences(groups, curves(groups, {"r0": {}})[0])


def test_what_is_below_the_majority_answer_comes_first_and_is_not_praised() -> None:
    """By hand: the majority answer averages 25. `low` ends at 10 and forgets nothing, `high` at 55 and forgets 20."""
    sentences = said(
        high=[[60.0, None], [40.0, 70.0]], low=[[10.0, None], [10.0, 10.0]], mid=[[50.0, None], [20.0, 40.0]]
    )
    assert sentences[0] == "At or below the majority answer (25.0) after the last task: low 10.0."
    assert "Highest average after the last task: high, 55.0." in sentences
    assert "Least forgetting: high, 20.0." in sentences
    assert "Most forgetting: mid, 30.0." in sentences
    assert not any("low" in sentence for sentence in sentences[1:])


def test_when_a_constant_reply_beats_all_nobody_is_praised() -> None:
    sentences = said(one=[[10.0, None], [0.0, 20.0]], other=[[12.0, None], [9.0, 20.0]])
    assert sentences[0].startswith("All lines end at or below the majority answer (25.0)")
    assert not any(word in " ".join(sentences) for word in ("Highest", "Least", "Learned most"))
    assert "Most forgetting: one, 10.0." in sentences


def test_a_task_that_nobody_learned_is_named() -> None:
    sentences = said(one=[[90.0, None], [90.0, 30.0]], other=[[80.0, None], [80.0, 10.0]])
    assert sentences[0] == "No line ends above the majority answer on b (30.0)."


@pytest.mark.parametrize("change", [0.0, 0.04, -3.0])
def test_no_line_is_called_most_forgetful_for_nothing(change: float) -> None:
    sentences = said(one=[[60.0, None], [60.0 - change, 50.0]], other=[[70.0, None], [70.0, 50.0]])
    assert "No line forgets." in sentences
    assert not any("Most forgetting" in sentence for sentence in sentences)


def test_a_tie_is_called_a_tie() -> None:
    sentences = said(
        one=[[60.0, None], [60.0, 50.0]], two=[[50.0, None], [50.0, 60.0]], three=[[50.0, None], [30.0, 40.0]]
    )
    assert "Highest average after the last task: one, two, 55.0 (a tie)." in sentences
    assert "Least forgetting: one, two, 0.0 (a tie)." in sentences


def test_an_unknown_majority_answer_is_told() -> None:
    run = replace(run_of([[60.0, None], [60.0, 50.0]]), tasks={})
    assert "is not known" in below_majority({"one": [run]})[0]


def test_recorded_runs_are_held_against_their_majority_answer() -> None:
    """Of the pocket model's runs none ends above 17.2; smol learns five of mini-CoIN's eight tasks."""
    groups = named(grouped([read_run(path) for path in sorted((RECORDS / "pocket-two-orders").glob("*.json"))]))
    assert below_majority(groups)[0].startswith("All lines end at or below the majority answer (17.2)")
    coin = named(grouped([read_run(path) for path in sorted((RECORDS / "mini-coin").glob("*.json"))]))
    assert below_majority(coin) == [
        "No line ends above the majority answer on scienceqa (30.0), imagenet (10.0), grounding (22.5)."
    ]
