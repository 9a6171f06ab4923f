"""Retention of general ability: figures by hand, the file, and what people and MLflow see of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import rich.console
from finished_runs import STREAM, finished
from mlflow import MlflowClient

from components.console.live import Console
from components.core.errors import ConfigError, DataError
from components.core.events import SuitesScored
from components.evaluation.general import FORMAT, GENERAL_FILE, LABELS, GeneralScores, Kept
from components.methods.sequential_lora import SequentialLoraConfig
from components.reporting.tables import general_tables
from components.runs.results import FinishedRun, read_run, write_record
from components.tracking.config import TrackingConfig, tracking_uri
from components.tracking.store import open_tracker
from components.training.config import EvaluationConfig, RunConfig


def scores() -> GeneralScores:
    """Two suites before, after one task and after two; the second one knew nothing before."""
    found = GeneralScores()
    for learned, after, (first, second) in ((0, "zero-shot", (80, 20)), (1, "a", (70, 30)), (2, "b", (60, 25))):
        found = found.plus(learned, after, "first", {"score": float(first), "f1": 1.0})
        found = found.plus(learned, after, "second", {"score": float(second)})
    return found


def test_retention_by_hand() -> None:
    kept = scores().kept()
    assert kept == {"first": Kept(before=80.0, after=60.0), "second": Kept(before=20.0, after=25.0)}
    assert (kept["first"].difference, kept["first"].retained) == (-20.0, 0.75)
    summary = scores().summary(final_average=30.0)
    assert summary == {
        "mean_before": 50.0,
        "mean_after": 42.5,
        "mean_difference": -7.5,
        "mean_retained": 1.0,  # 0.75 and 1.25
        "hmean": pytest.approx(2 * 30 * 42.5 / 72.5),
    }
    assert set(summary) == set(LABELS)
    assert scores().summary(learned=1)["mean_difference"] == 0.0


def test_what_cannot_be_computed_is_left_out() -> None:
    ignorant = GeneralScores().plus(0, "zero-shot", "first", {"score": 0.0}).plus(2, "b", "first", {"score": 5.0})
    assert ignorant.kept()["first"].retained is None
    assert set(ignorant.summary()) == {"mean_before", "mean_after", "mean_difference"}
    assert GeneralScores().kept() == GeneralScores().summary() == {}
    before = GeneralScores().plus(0, "zero-shot", "first", {"score": 50.0})
    assert before.kept() == {}, "nothing was learned yet"
    after = GeneralScores().plus(2, "b", "first", {"score": 50.0})
    assert after.kept() == {}, "nothing to compare with"


def test_the_file_is_the_memory(tmp_path: Path) -> None:
    path = tmp_path / GENERAL_FILE
    assert GeneralScores.read(path) == GeneralScores()
    scores().write(path, final_average=30.0)
    back = GeneralScores.read(path)
    assert back == scores()
    assert [back.has(2, "first"), back.has(2, "third"), back.has(3, "first")] == [True, False, False]
    content = json.loads(path.read_text())
    assert content["retention"]["first"] == {"before": 80.0, "after": 60.0, "difference": -20.0, "retained": 0.75}
    assert content["summary"]["hmean"] == pytest.approx(2 * 30 * 42.5 / 72.5)
    assert [row["after"] for row in content["rows"]] == ["zero-shot", "a", "b"]
    for broken in ("{", "[]", json.dumps({"format": FORMAT}), json.dumps({"format": FORMAT, "rows": [{"after": "a"}]})):
        path.write_text(broken)
        with pytest.raises(DataError):
            GeneralScores.read(path)


def test_a_suite_is_named_once() -> None:
    with pytest.raises(ConfigError, match="names mini-general twice"):
        EvaluationConfig(suites=("mini-general", "mini-general"))


def event(learned: int) -> SuitesScored:
    found = scores()
    return SuitesScored(
        tasks_learned=learned,
        after=found.after[learned],
        figures={suite: dict(values) for suite, values in found.figures[learned].items()},
        retention=found.summary(learned=learned),
        evaluate_s=3.0,
    )


def test_people_see_it() -> None:
    text = io.StringIO()
    console = Console(rich.console.Console(file=text, width=100, highlight=False))
    console.handle(event(0))
    console.handle(event(2))
    console.print_general(scores(), 30.0)
    shown = text.getvalue()
    assert "General ability before: first 80.0  second 20.0  (scored 3 s)\n" in shown
    assert "General ability after b: first 60.0  second 25.0  (scored 3 s)\n" in shown
    cells = [line.replace("│", " ").split() for line in shown.splitlines()]
    assert ["first", "80.0", "60.0", "-20.0", "0.75"] in cells
    assert "Difference (general ability delta): -7.50" in shown
    before = len(text.getvalue())
    console.print_general(GeneralScores())
    assert len(text.getvalue()) == before, "without suites there is nothing to say"


def test_mlflow_has_it_once_at_tasks_learned(tmp_path: Path) -> None:
    tags = {"stream": "s", "method": "m", "backbone": "b", "seed": "0"}
    first = open_tracker(TrackingConfig(), tmp_path, "run", {}, tags)
    for learned in (0, 2):
        first.handle(event(learned))
    first.finish("FAILED")
    again = open_tracker(TrackingConfig(), tmp_path, "run", {}, tags, resume_run_id=first.run_id)
    again.handle(event(2))
    again.finish("FINISHED")
    client = MlflowClient(tracking_uri(TrackingConfig(), tmp_path))
    assert first.run_id is not None

    def curve(key: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client.get_metric_history(str(first.run_id), key)]

    assert curve("general/first") == [(0, 80.0), (2, 60.0)]
    assert curve("general/first f1") == [(0, 1.0), (2, 1.0)]
    assert curve("retention/mean_difference") == [(2, -7.5)]


@pytest.fixture
def runs(tmp_path: Path) -> list[FinishedRun]:
    """Two seeds with suites, and a run without."""
    base = RunConfig(stream=STREAM, method=SequentialLoraConfig(), tracking=TrackingConfig(enabled=False))
    found = []
    for seed, change in enumerate((0.0, 10.0, None)):
        config = replace(base, run_id=f"r{seed}", seed=seed)
        path = finished(tmp_path, config, [[80.0, None], [60.0, 50.0]])
        if change is not None:
            scores().plus(2, "b", "first", {"score": 60.0 + change}).write(path / GENERAL_FILE)
        found.append(read_run(path))
    return found


def test_the_report_has_a_table_of_its_own(runs: list[FinishedRun]) -> None:
    assert general_tables(runs[2:]) == []
    [(header, [line])] = general_tables(runs)
    assert header[1:3] == ["first", "second"]
    # by hand: 60 and 70 -> 65 ± 7.1; differences -7.5 and -2.5; retained 1 and 1.0625
    assert line[1] == "80.0 ± 0.0 -> 65.0 ± 7.1"
    assert line[2] == "20.0 ± 0.0 -> 25.0 ± 0.0"
    assert line[3:5] == ["-5.0 ± 3.5", "103.1 ± 4.4"]
    assert line[-1] == "0, 1"


def test_a_record_keeps_it(runs: list[FinishedRun], tmp_path: Path) -> None:
    assert read_run(write_record(runs[0], tmp_path / "records")).general == runs[0].general
    assert "general" not in json.loads(write_record(runs[2], tmp_path / "records").read_text())
