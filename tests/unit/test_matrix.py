"""The score matrix: its figures by hand, on published rows, and as properties; its JSON; its errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.errors import ConfigError
from components.evaluation.figure_names import ALIASES, LABELS, WITHOUT_BOUNDARIES
from components.evaluation.matrix import MatrixError, ScoreMatrix

SCORES = st.floats(0, 100, allow_nan=False)


@st.composite
def full_rows(draw: st.DrawFn) -> list[list[float | None]]:
    size = draw(st.integers(2, 8))
    return [[draw(SCORES) if j <= i else None for j in range(size)] for i in range(size)]


def names(size: int) -> list[str]:
    return [f"task{j}" for j in range(size)]


# Three tasks with zero-shot and unseen tasks evaluated; every figure below was worked out by hand.
TASKS = ["a", "b", "c"]
ROWS = [[10.0, 20.0, 30.0], [80.0, 26.0, 31.0], [90.0, 70.0, 40.0], [60.0, 50.0, 75.0]]


def test_hand_worked_figures() -> None:
    matrix = ScoreMatrix(TASKS, ROWS)
    assert matrix.final_average() == pytest.approx((60 + 50 + 75) / 3)
    assert matrix.immediate_average() == pytest.approx(75)
    assert matrix.mean_average() == pytest.approx((80 + 80 + 185 / 3) / 3)
    assert matrix.bwt() == pytest.approx((-20 - 20) / 2)
    assert matrix.bwt("T") == pytest.approx(-40 / 3)
    assert matrix.forgetting() == pytest.approx((30 + 20) / 2)  # task a was best after b
    assert matrix.forgetting("diagonal") == pytest.approx(20)
    assert matrix.forward_transfer() == pytest.approx(((26 - 20) + (40 - 30)) / 2)
    assert matrix.zero_shot_average() == pytest.approx(20)
    assert matrix.summary() == pytest.approx(
        {
            "final_average": 185 / 3,
            "immediate_average": 75,
            "mean_average": (160 + 185 / 3) / 3,
            "bwt": -20,
            "bwt_divisor_t": -40 / 3,
            "forgetting": 25,
            "forgetting_diagonal": 20,
            "forward_transfer": 8,
            "zero_shot_average": 20,
        }
    )


def test_every_figure_has_a_label_and_aliases() -> None:
    assert set(ScoreMatrix(TASKS, ROWS).summary()) | WITHOUT_BOUNDARIES == set(LABELS) == set(ALIASES)
    published = [alias for group in ALIASES.values() for alias in group]
    assert len(published) == len(set(published))


def test_the_published_coin_lora_row() -> None:
    """CoIN (arXiv 2403.08350), LLaVA-7B LoRA, main order: own and final columns; only BWT with divisor T matches."""
    own = [82.45, 49.99, 96.05, 56.40, 55.45, 31.27, 62.20, 57.08]
    final = [21.26, 28.74, 10.25, 36.78, 32.45, 0.83, 42.50, 57.08]
    rows: list[list[float | None]] = [[own[j] if j == i else None for j in range(8)] for i in range(7)]
    matrix = ScoreMatrix(names(8), [*rows, final])
    assert matrix.bwt("T") == pytest.approx(-32.62, abs=0.006)
    assert matrix.bwt() == pytest.approx(-37.28, abs=0.01)
    assert matrix.final_average() == pytest.approx(28.74, abs=0.005)
    with pytest.raises(MatrixError, match="mean_average needs 'task0' scored after 'task1'"):
        matrix.mean_average()
    assert "forgetting" not in matrix.summary()  # needs the cells in between
    assert matrix.summary()["forgetting_diagonal"] == pytest.approx(37.28, abs=0.01)


@given(full_rows())
def test_final_equals_immediate_plus_transfer(rows: list[list[float | None]]) -> None:
    """MFN = MFT + ((T-1)/T) BWT, with either divisor read accordingly."""
    size = len(rows)
    matrix = ScoreMatrix(names(size), rows)
    expected = matrix.immediate_average() + (size - 1) / size * matrix.bwt()
    assert matrix.final_average() == pytest.approx(expected, abs=1e-9)
    assert matrix.final_average() == pytest.approx(matrix.immediate_average() + matrix.bwt("T"), abs=1e-9)


@given(full_rows())
def test_forgetting_bounds(rows: list[list[float | None]]) -> None:
    matrix = ScoreMatrix(names(len(rows)), rows)
    assert matrix.forgetting("diagonal") == pytest.approx(-matrix.bwt(), abs=1e-9)
    assert matrix.forgetting() >= matrix.forgetting("diagonal") - 1e-9


@given(full_rows(), st.data())
def test_json_and_prefixes(rows: list[list[float | None]], data: st.DataObject) -> None:
    matrix = ScoreMatrix(names(len(rows)), rows)
    content = matrix.to_dict(stream="s", method="m", backbone="b", seed=1)
    assert ScoreMatrix.from_dict(json.loads(json.dumps(content))) == matrix
    learned = data.draw(st.integers(1, len(rows)))
    prefix = matrix.at(learned)
    assert prefix.num_learned == learned
    assert prefix.rows == rows[:learned]
    # A stream that is cut after k tasks has the figures of a stream of k tasks.
    alone = ScoreMatrix(names(learned), [row[:learned] for row in rows[:learned]])
    assert prefix.summary() == pytest.approx(alone.summary())


def test_a_running_stream() -> None:
    matrix = ScoreMatrix(TASKS, ROWS[:2], ["zero-shot", "a"])
    assert matrix.after == ["zero-shot", "a"]
    assert matrix.summary() == pytest.approx(
        {"final_average": 80, "immediate_average": 80, "mean_average": 80, "zero_shot_average": 20}
    )
    with pytest.raises(MatrixError, match="needs at least 2 learned tasks, this matrix has 1"):
        matrix.bwt()
    assert ScoreMatrix(TASKS, ROWS[:2], zero_shot=True) == matrix
    assert ScoreMatrix(TASKS, ROWS[1:3], zero_shot=False).bwt() == pytest.approx(10)
    assert ScoreMatrix(TASKS, []).summary() == {}
    assert ScoreMatrix(TASKS, ROWS[:1], zero_shot=True).summary() == pytest.approx({"zero_shot_average": 20})
    assert ScoreMatrix(TASKS, ROWS).at(0).rows == ROWS[:1]


def test_the_number_of_rows_decides() -> None:
    assert ScoreMatrix(TASKS, ROWS).has_zero_shot
    assert not ScoreMatrix(TASKS, ROWS[1:]).has_zero_shot
    assert ScoreMatrix(TASKS, ROWS[1:]).final_average() == ScoreMatrix(TASKS, ROWS).final_average()
    with pytest.raises(MatrixError, match="forward_transfer needs the zero-shot row"):
        ScoreMatrix(TASKS, ROWS[1:]).forward_transfer()


def test_from_scores_fills_unseen_cells() -> None:
    matrix = ScoreMatrix.from_scores(TASKS, [("a", {"a": 5.0}), ("b", {"a": 4.0, "b": None})])
    assert matrix.rows == [[5.0, None, None], [4.0, None, None]]
    with pytest.raises(MatrixError, match=r"scores \['z'\]"):
        ScoreMatrix.from_scores(TASKS, [("a", {"z": 1.0})])


@pytest.mark.parametrize(
    ("rows", "after", "zero_shot", "message"),
    [
        (ROWS[:2], None, None, "2 rows for 3 tasks can be read with or without"),
        ([*ROWS, ROWS[0]], None, None, "5 rows for 3 tasks"),
        (ROWS, None, False, "4 rows were given for 3 tasks"),
        ([], None, True, "at least the zero-shot row"),
        ([[1.0, 2.0], [1.0], [2.0]], None, None, "Row 0 has 2 cells for 3 tasks"),
        ([[1.0, math.nan, 2.0]], None, True, "finite numbers and None"),
        ([[1.0, "x", 2.0]], None, True, "finite numbers and None"),
        (ROWS[:2], ["b", "a"], None, "must come after"),
        (ROWS[:2], ["zero-shot"], None, "must come after"),
        (ROWS[:2], ["zero-shot", "a"], False, "contradicts"),
    ],
)
def test_bad_rows(rows: list[list[float]], after: list[str] | None, zero_shot: bool | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScoreMatrix(TASKS, rows, after, zero_shot=zero_shot)


def test_bad_names_and_options() -> None:
    with pytest.raises(ConfigError, match="at least one task"):
        ScoreMatrix([], [])
    with pytest.raises(ConfigError, match="must differ"):
        ScoreMatrix(["a", "a"], [])
    with pytest.raises(ConfigError, match="no divisor 'N'"):
        ScoreMatrix(TASKS, ROWS).bwt("N")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="no reference 'last'"):
        ScoreMatrix(TASKS, ROWS).forgetting("last")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="asked for 4"):
        ScoreMatrix(TASKS, ROWS).at(4)


def test_the_file(tmp_path: Path) -> None:
    matrix = ScoreMatrix(TASKS, [[1.0, None, None], [2.0, 3.0, None]], zero_shot=False)
    path = tmp_path / "score_matrix.json"
    matrix.write(path, stream="s", method="lora", backbone="pocket", seed=7, extra={"oracle": None})
    content = json.loads(path.read_text())
    assert content["rows"][0] == {"after": "a", "scores": {"a": 1.0, "b": None, "c": None}}
    assert (content["stream"], content["method"], content["backbone"], content["seed"]) == ("s", "lora", "pocket", 7)
    assert content["summary"]["bwt"] == pytest.approx(1)
    assert ScoreMatrix.read(path) == matrix
    assert [file.name for file in tmp_path.iterdir()] == ["score_matrix.json"]
    with pytest.raises(ConfigError, match="must not replace"):
        matrix.write(path, stream="s", method="m", backbone="b", seed=0, extra={"rows": []})
    path.write_text("{")
    with pytest.raises(ConfigError, match="restore the score matrix"):
        ScoreMatrix.read(path)
    with pytest.raises(ConfigError, match="lists 'tasks' and 'rows'"):
        ScoreMatrix.from_dict({"tasks": ["a"]})
    with pytest.raises(ConfigError, match="has 'after' and 'scores'"):
        ScoreMatrix.from_dict({"tasks": ["a"], "rows": [{"after": "a"}]})
