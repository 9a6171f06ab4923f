"""Published rows as data, and a run held against them."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import rich.console

from components.console.live import Console
from components.data.benchmarks.catalogue import BENCHMARKS
from components.evaluation.figure_names import ALIASES
from components.evaluation.ledger import PublishedRow, benchmark_of, benchmarks, differences, published
from components.evaluation.matrix import ScoreMatrix
from components.methods import METHODS

ROWS = [row for name in benchmarks() for row in published(name)]
CLEVR = ["imagenet-r", "clevr-math"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.benchmark}-{row.label}-{row.source[:12]}")
def test_a_published_row_is_whole(row: PublishedRow) -> None:
    assert row.final or row.figures
    assert set(row.figures) <= set(ALIASES)
    assert row.method is None or row.method in METHODS
    assert row.protocol["backbone"]
    assert all(0 <= score <= 100 for score in row.final.values())


@pytest.mark.parametrize("name", ["coin", "ucit", "mllm-dcl"])
def test_published_tasks_are_those_of_the_stream(name: str) -> None:
    tasks = set(BENCHMARKS[name].task_names)
    rows = published(name)
    assert {task for row in rows for task in row.final} == tasks
    assert {row.num_tasks for row in rows} == {len(tasks)}


def test_the_rows_are_consistent_but_for_those_that_are_known_not_to_be() -> None:
    """Known: CVIT's printed figures come without the immediate average, so nothing can be checked there."""
    assert [(row.benchmark, row.label, row.flaws()) for row in ROWS if row.flaws()] == []
    checked = [row for row in ROWS if {"immediate_average", "final_average"} <= set(row.figures)]
    assert len(checked) >= 20


def test_a_mistyped_row_is_flagged() -> None:
    disco = next(row for row in published("ucit") if row.label == "DISCO")
    assert disco.flaws() == []
    [flaw] = replace(disco, figures={**disco.figures, "bwt": -6.40}).flaws()
    assert flaw == "MFT + (T-1)/T BWT is 70.54, its final average 69.66"  # 75.87 - 5/6 * 6.40
    [flaw] = replace(disco, final={**disco.final, "flickr30k": 66.69}, figures={"final_average": 69.66}).flaws()
    assert flaw == "its final scores average 71.33, it prints 69.66"


def test_only_real_benchmarks_have_published_rows() -> None:
    assert benchmark_of("coin-alphabetical") == benchmark_of("coin") == "coin"
    assert [benchmark_of(name) for name in ("mini-coin", "mini-coast-domain", "coins", "my-stream")] == [None] * 4
    matrix = ScoreMatrix(CLEVR, [[50.0, None], [40.0, 60.0]], zero_shot=False)
    assert differences("mini-coin", "disco", matrix, {}) == []


def ucit_matrix(first: float | None, others: float) -> ScoreMatrix:
    """All six tasks: the first is learned with 50 and ends with `first`, the others stay as they are."""
    rows = [[50.0, *[others] * at, *[None] * (5 - at)] for at in range(5)] + [[first, *[others] * 5]]
    return ScoreMatrix(list(BENCHMARKS["ucit"].task_names), rows, zero_shot=False)


def test_rows_by_the_released_scripts_are_held_against_that_reading() -> None:
    """Final 41 and 61 by the released rules, 40 and 60 by ours; a reading with a missing cell is not used."""
    matrix, compat = ucit_matrix(40, 60), ucit_matrix(41, 61)
    run = {"backbone": "LLaVA-1.5-7B", "starts_from": "instruction-tuned weights", "scorer": "fixed"}
    [found] = differences("ucit", "disco", matrix, run, compat)
    assert found.figures["final_average"] == pytest.approx((41 + 5 * 61) / 6 - 69.66)
    assert found.protocol == ()
    for other in (None, ucit_matrix(None, 61)):
        [found] = differences("ucit", "disco", matrix, run, other)
        assert found.figures["final_average"] == pytest.approx((40 + 5 * 60) / 6 - 69.66)
        assert found.protocol == ("scorer: fixed, there compat",)


def test_every_published_row_tells_its_scorer() -> None:
    assert {row.protocol["scorer"] for row in ROWS} == {"compat", "not stated"}
    assert {row.protocol["scorer"] for row in published("mllm-dcl")} == {"compat"}


def test_a_run_is_held_against_rows_of_its_method() -> None:
    """By hand: final scores of 40 and five times 60; average 340/6 against 69.66; BWT -10/5 against -7.45."""
    matrix = ucit_matrix(40, 60)
    [found] = differences("ucit", "disco", matrix, {"backbone": "LLaVA-1.5-7B", "order": ", ".join(matrix.tasks)})
    assert found.final["imagenet-r"] == pytest.approx(40 - 87.43)
    assert found.final["clevr-math"] == pytest.approx(60 - 65.70)
    assert found.figures["final_average"] == pytest.approx(340 / 6 - 69.66)
    assert found.figures["bwt"] == pytest.approx(-2 + 7.45)
    assert found.protocol == (
        "starts_from: not recorded, there instruction-tuned weights",
        "scorer: not recorded, there compat",
    )
    out = io.StringIO()
    Console(rich.console.Console(file=out, width=40)).print_ledger([found])
    first, *notes = out.getvalue().splitlines()
    assert first.startswith("DISCO in MCITlib, README tables: ")
    assert "Final average (MFN, Last) -13.0" in first
    assert notes[-1].strip() == "trust: authors of the toolbox"


def test_averages_over_some_of_the_tasks_are_not_held_against_those_over_all() -> None:
    matrix = ScoreMatrix(CLEVR, [[50.0, None], [40.0, 60.0]], zero_shot=False)
    [found] = differences("ucit", "disco", matrix, {})
    assert found.final == pytest.approx({"imagenet-r": 40 - 87.43, "clevr-math": 60 - 65.70})
    assert found.figures == {}
    assert found.protocol[0] == "tasks: 2, there 6: averages are not compared"
