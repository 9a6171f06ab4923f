"""pipelines/judge.py over the folder of a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_runs import STREAM, TASKS, finished

from components.core.location import Location, place
from components.evaluation.matrix import ScoreMatrix
from components.methods.sequential_lora import SequentialLoraConfig
from components.tracking.config import TrackingConfig
from components.training.config import RunConfig
from pipelines import judge
from pipelines.littoral import guarded


def reply(after: str, task: str, prediction: str) -> dict[str, object]:
    row = {"after": after, "task": task, "prompt": "What is it?", "prediction": prediction}
    return {**row, "answers": ["cat"], "metric": "exact", "sample_id": "0", "score": 0.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = RunConfig(run_id="a", stream=STREAM, method=SequentialLoraConfig(), tracking=TrackingConfig(enabled=False))
    path = finished(tmp_path, config, [[0.0, None], [0.0, 0.0]])
    files = {
        f"01-{TASKS[0]}": [reply(TASKS[0], TASKS[0], "cat"), reply(TASKS[0], TASKS[0], "")],
        f"02-{TASKS[1]}": [reply(TASKS[1], TASKS[0], ""), reply(TASKS[1], TASKS[1], "cat")],
    }
    (path / "predictions").mkdir()
    for name, rows in files.items():
        pq.write_table(pa.Table.from_pylist(rows), path / "predictions" / f"{name}.parquet")
    return path


def judged(run: Path, *options: str) -> int:
    return guarded(lambda: judge.main([str(run), "--judge.model", "hash", *options]))


def test_every_cell_is_judged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judged(run) == 0
    matrix = ScoreMatrix.read(run / "judged_matrix.json")
    assert matrix.after == TASKS
    assert matrix.rows == [[pytest.approx(50.0), None], [0.0, pytest.approx(100.0)]]  # by hand: 10 and 0; 0; 10
    content = json.loads((run / "judged_matrix.json").read_text())
    assert (content["judge"], content["judged"], content["failed"]) == ("similarity hash", 4, 0)
    out = capsys.readouterr().out
    assert "Read it with care: cosine of sentence embeddings" in out
    assert len((run.parent / "judge_cache.jsonl").read_text().splitlines()) == 2, "two different replies"
    assert judged(run, "--limit", "1") == 0
    assert ScoreMatrix.read(run / "judged_matrix.json").rows[0] == [pytest.approx(100.0), None]


def test_a_run_without_predictions_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (run / "predictions").iterdir():
        file.unlink()
    assert judged(run) != 0
    assert "has no predictions to judge" in capsys.readouterr().err
    assert not (run / "judged_matrix.json").exists()


def test_a_run_in_a_store_is_judged_as_in_a_folder(run: Path) -> None:
    storage = place("memory://unit-judged/runs")
    assert isinstance(storage, Location)
    try:
        for file in run.rglob("*"):
            if file.is_file():
                (storage / "a" / file.relative_to(run).as_posix()).put(file)
        for at in (run, storage / "a"):
            for _ in range(2):  # the second time, nothing is asked
                assert judge.main([str(at), "--judge.model", "hash"]) == 0
        there = storage / "a" / "judged_matrix.json"
        assert json.loads(there.read_bytes())["rows"] == json.loads((run / "judged_matrix.json").read_text())["rows"]
        (verdicts,) = (storage / ".cache" / "judge_cache.jsonl").glob("*.jsonl")
        assert len(verdicts.read_text().splitlines()) == 2, "two different replies"
    finally:
        memory = fsspec.filesystem("memory")
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]
