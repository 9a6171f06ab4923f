"""A run without one of its tasks: what it holds, scores and records, and that it goes on.

    python -m pytest tests/integration/test_unlearn.py

One Ray session serves all runs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from components.core.checkpoint import read_checkpoint
from components.core.errors import ConfigError
from components.core.ray_session import ray_session
from components.methods import METHODS
from components.runs.execute import run_and_record
from components.runs.results import read_run
from components.runs.status import RunStatus, read_status
from components.tracking.config import sqlite_uri
from components.training.config import ClusterConfig
from components.training.fork import new_origin
from components.training.plan import plan_stream
from pipelines import unlearn
from pipelines.presets import pocket

A, B, C = "iconqa", "docvqa", "chartqa"


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def scores(run_dir: Path) -> dict[str, dict[str, float | None]]:
    return {row["after"]: row["scores"] for row in json.loads((run_dir / "score_matrix.json").read_text())["rows"]}


def replies(run_dir: Path, name: str, task: str) -> list[str]:
    table = pq.read_table(run_dir / "predictions" / f"{name}.parquet").to_pylist()
    return [row["prediction"] for row in table if row["task"] == task]


@pytest.mark.long
def test_a_task_is_unlearned_scored_recorded_and_learned_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = pocket()
    config = replace(
        preset,
        run_id="first",
        storage=tmp_path,
        stream=replace(preset.stream, size="nano", order=(A, B, C), test_limit=4),
        method=METHODS["individual"].tiny(),
        training=replace(preset.training, updates_per_task=3),
        cluster=ClusterConfig(num_workers=1, threads_per_worker=1),
    )
    first, new = tmp_path / "first", tmp_path / "first-without-docvqa"
    with ray_session(None, num_workers=1):
        run_and_record(plan_stream(config), lambda event: None)
        unchanged = digests(first)
        arguments = ["first", B, "--storage", str(tmp_path)]
        assert unlearn.main([*arguments, "--dry-run"]) == 0
        assert "nothing of it stays" in capsys.readouterr().out
        assert not new.exists()
        assert unlearn.main(arguments) == 0
        assert digests(first) == unchanged
        assert "docvqa: " in capsys.readouterr().out

        gone = [
            value.numpy().tobytes()
            for name, value in read_checkpoint(first / "checkpoints" / f"03-{C}").tensors["method"].items()
            if ".groups.1." in name
        ]
        assert gone
        written = b"".join(path.read_bytes() for path in new.rglob("*") if path.is_file())
        assert not [value for value in gone if value in written]

        rows, before = scores(new), scores(first)
        assert [*rows] == ["zero-shot", A, C]
        assert rows["zero-shot"] == before["zero-shot"]
        assert rows[A][A] == before[A][A]
        for task in (A, C):  # by their own branches, as before
            assert replies(new, f"02-{C}", task) == replies(first, f"03-{C}", task)
        # An unlearned task is answered by the backbone alone.
        assert replies(new, f"02-{C}", B) == replies(first, "00-zero-shot", B)
        kept = json.loads((new / "unlearned.json").read_text())
        assert kept["before"] == before[C]
        assert kept["after"] == rows[C]
        state = first / "checkpoints" / f"03-{C}" / "state.json"
        assert kept["digest"] == hashlib.sha256(state.read_bytes()).hexdigest()

        said = read_status(new)
        assert isinstance(said, RunStatus)
        assert (said.state, said.origin, said.tasks, said.learned) == ("finished", f"first without task {B}", 2, 2)
        assert read_run(new).matrix.rows[-1] == [rows[C][A], rows[C][C], rows[C][B]]
        link = json.loads((new / "mlflow.json").read_text())
        recorded = MlflowClient(sqlite_uri(tmp_path / "mlflow.db")).get_run(link["run_id"])
        assert recorded.data.tags["unlearned"] == B
        assert recorded.data.tags["continued_from"] == "first"
        assert recorded.data.tags["continued_from_digest"] == kept["digest"]

        assert unlearn.main(arguments) == 0  # it has finished: its result again
        with pytest.raises(ConfigError, match="is not run first without"):
            unlearn.main(["first", A, "--storage", str(tmp_path), "--run-id", new.name])

        again = replace(config, run_id="again", stream=replace(config.stream, order=(B,)))
        origin = new_origin(again, new, None, score_again=False)
        run_and_record(plan_stream(again, origin), lambda event: None)
    assert [*scores(tmp_path / "again")] == ["zero-shot", A, C, B]
    assert replies(tmp_path / "again", f"03-{B}", A) == replies(first, f"03-{C}", A)
