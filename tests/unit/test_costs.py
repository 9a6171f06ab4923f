"""What a run has cost, counted from its events and read back from its folder without MLflow."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from finished_runs import STREAM, finished

from components.core.errors import ConfigError
from components.core.events import Event, Note, RowScored, StepDone, TaskStarted
from components.methods.sequential_lora import SequentialLoraConfig
from components.runs.costs import Cost, Costs
from components.runs.results import read_run
from components.training.config import RunConfig
from pipelines import report

ROWS = [[1.0, 2.0], [80.0, None], [60.0, 50.0]]


def _started(trainable: int) -> TaskStarted:
    return TaskStarted(
        index=0,
        task="docvqa",
        num_samples=8,
        num_updates=1,
        trainable_parameters=trainable,
        total_parameters=trainable,
        start_s=1.0,
    )


def _step() -> StepDone:
    return StepDone(
        index=0,
        task="docvqa",
        update=1,
        num_updates=1,
        loss=1.0,
        parts={},
        learning_rate=1e-4,
        grad_norm=1.0,
        samples_per_s=1.0,
        data_wait_s=0.0,
    )


def _scored(learned: int, after: str, train_s: float, evaluate_s: float) -> RowScored:
    return RowScored(
        tasks_learned=learned,
        after=after,
        scores={},
        routing_accuracy=None,
        slot_usage=None,
        train_s=train_s,
        evaluate_s=evaluate_s,
        peak_memory_bytes=0,
        checkpoint_path=None,
    )


def test_a_continued_run_goes_on_counting(tmp_path: Path) -> None:
    before: list[Event] = [_scored(0, "zero-shot", 0.0, 2.0), _started(7), _step(), Note(text="saved")]
    later: list[Event] = [_step(), _scored(1, "docvqa", 60.0, 3.0), _started(5), _scored(2, "iconqa", 30.0, 1.0)]
    for events in (before, later, [_scored(2, "iconqa", 0.0, 4.0)]):  # the last row was scored again
        costs = Costs.read(tmp_path)
        for event in events:
            costs.add(event)
        costs.write(tmp_path)
    costs = Costs.read(tmp_path)
    assert costs.updates == 2
    assert costs.total(["zero-shot", "docvqa", "iconqa"]) == Cost(train_s=90, evaluate_s=10, trainable_parameters=7)
    assert costs.total(["zero-shot", "docvqa", "iconqa", "chartqa"]) is None, "a row that nobody counted"
    assert Costs().total([]) is None


def test_a_copied_run_is_reported_in_full_without_its_mlflow_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, copied = tmp_path / "runs", tmp_path / "elsewhere" / "a"
    storage.mkdir()
    config = replace(RunConfig(stream=STREAM, method=SequentialLoraConfig(rank=4)), run_id="a", storage=storage)
    path = finished(storage, config, ROWS, zero_shot=True)
    link = {"run_id": "0" * 32, "store": f"sqlite:///{storage / 'mlflow.db'}", "ui": "mlflow ui", "view": ""}
    (path / "mlflow.json").write_text(json.dumps(link), encoding="utf-8")
    costs = Costs()
    for event in (
        _scored(0, "zero-shot", 0, 2),
        _started(1234),
        _scored(1, "docvqa", 60, 3),
        _scored(2, "iconqa", 30, 1),
    ):
        costs.add(event)
    costs.write(path)
    shutil.copytree(path, copied)
    shutil.rmtree(storage)

    assert read_run(copied).cost == Cost(train_s=90.0, evaluate_s=6.0, trainable_parameters=1234)
    report.main([str(copied), "--markdown"])
    told = capsys.readouterr().out
    assert "1,234 | 1.5 min" in told
    report.main([str(copied), "--html", str(tmp_path / "page")])
    assert "1,234" in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    (copied / "costs.json").unlink()
    assert read_run(copied).cost is None
    capsys.readouterr()
    report.main([str(copied), "--markdown"])
    assert "unknown | unknown" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["", "[]", '{"rows": [{"after": "chartqa"}]}', '{"updates": -5}'])
def test_broken_costs_are_one_sentence(tmp_path: Path, broken: str) -> None:
    (tmp_path / "costs.json").write_text(broken, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"costs\.json cannot be read .* delete it"):
        Costs.read(tmp_path)


@pytest.mark.parametrize("store", ["sqlite:///'none/x.db", "nothing://a"])
def test_a_link_to_no_store_is_named(store: str, tmp_path: Path) -> None:
    config = replace(RunConfig(stream=STREAM, method=SequentialLoraConfig(rank=4)), run_id="a", storage=tmp_path)
    path = finished(tmp_path, config, ROWS, zero_shot=True)
    (path / "mlflow.json").write_text(json.dumps({"run_id": "0" * 32, "store": store, "ui": "mlflow ui"}))
    with pytest.raises(ConfigError, match=r"mlflow\.json: tracking\.uri"):
        read_run(path)
