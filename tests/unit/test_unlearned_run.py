"""The run that keeps what another one has learned but for one task: its folder before anything is scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from components.core.checkpoint import read_checkpoint, write_checkpoint
from components.core.errors import ConfigError
from components.core.files import file_sha256
from components.core.location import Location, place
from components.data.stream_config import StreamConfig
from components.evaluation.matrix import ScoreMatrix
from components.evaluation.predictions import Prediction, predictions_file, write_predictions
from components.methods import METHODS
from components.models.source import model_source
from components.runs.execute import lineage_tags
from components.runs.status import RunStatus, read_status
from components.training.fork import new_origin, without_task
from components.training.plan import Plan, plan_stream
from components.training.run_folder import claim_run_dir, is_whole
from components.training.stream_state import StreamState
from pipelines import coast, unlearn
from pipelines.presets import preset

A, B, C = TASKS = ("docvqa", "iconqa", "chartqa")
ROWS: list[list[float | None]] = [[10.0, 20.0, 30.0], [50.0, None, None], [45.0, 60.0, None], [40.0, 55.0, 70.0]]


def first_run(storage: Path, method: str) -> Plan:
    """A run that has learned and scored its three tasks, each with a branch that holds its number."""
    run = preset("pocket")
    config = replace(
        run,
        run_id="first",
        storage=storage,
        stream=StreamConfig(size="nano", order=TASKS),
        method=METHODS[method].tiny(),
        tracking=replace(run.tracking, enabled=False),
    )
    plan = plan_stream(config)
    claim_run_dir(plan)
    ScoreMatrix(TASKS, ROWS, zero_shot=True).write(
        plan.run_dir / "score_matrix.json", stream="s", method=method, backbone="pocket", seed=0
    )
    for learned, after in enumerate(("zero-shot", *TASKS)):
        scored = TASKS[:learned] if learned else TASKS
        rows = [Prediction(after=after, task=task, sample_id=f"{task}-0", score=0.5) for task in scored]
        write_predictions(predictions_file(plan.run_dir, learned, after), rows)
    for number, task in enumerate(TASKS, 1):
        folder = plan.run_dir / "checkpoints" / f"{number:02d}-{task}"
        folder.mkdir(parents=True)
        state = {
            "backbone": model_source(config.backbone).fingerprint(),
            "method": method,
            "stream": plan.stream.digest,
            "method_structure": {"method": method, "tasks": list(TASKS[:number]), "begun": number},
            "stream_state": StreamState(index=number - 1, learned=True).to_json(),
        }
        branches = {f"layer.groups.{index}.up": torch.full((2,), index + 1.0) for index in range(number)}
        write_checkpoint(folder, state, {"method": branches})
    return plan


def test_the_new_folder_has_the_other_tasks_and_says_where_it_is_from(tmp_path: Path) -> None:
    first = first_run(tmp_path, "individual")
    config, origin = without_task(first.run_dir, B, run_id=None, storage=tmp_path, partial=False)
    plan = plan_stream(config, origin)
    assert plan.run_dir.name == "first-without-iconqa"
    assert not plan.run_dir.exists()
    assert plan.stream.task_names == [A, C, B]
    assert plan.num_tasks == 2
    assert [each.num_updates for each in plan.schedule] == [0, 0, 0]
    claim_run_dir(plan)

    kept = read_checkpoint(plan.run_dir / "checkpoints" / f"02-{C}")
    found = {name: tensor.tolist() for name, tensor in kept.tensors["method"].items()}
    assert found == {"layer.groups.0.up": [1.0, 1.0], "layer.groups.1.up": [3.0, 3.0]}
    assert kept.state["method_structure"] == {"method": "individual", "tasks": [A, C], "begun": 2}
    assert StreamState.of(kept).learned
    matrix = ScoreMatrix.read(plan.run_dir / "score_matrix.json")
    assert (matrix.after, matrix.tasks) == (["zero-shot", A], [A, C, B])
    assert matrix.rows == [[10.0, 30.0, 20.0], [50.0, None, None]]
    assert not is_whole(plan)

    source = first.run_dir / "checkpoints" / f"03-{C}"
    tags = lineage_tags(plan, {})
    assert (tags["continued_from"], tags["unlearned"], tags["unlearned_traces"]) == ("first", B, "none")
    assert tags["continued_from_checkpoint"] == source.as_uri()
    assert tags["continued_from_digest"] == file_sha256(source / "state.json")
    said = read_status(plan.run_dir)
    assert isinstance(said, RunStatus)
    assert (said.origin, said.tasks, said.learned) == (f"first without task {B}", 2, 1)

    again = without_task(first.run_dir, B, run_id=None, storage=tmp_path, partial=False)
    assert again[1] == origin
    with pytest.raises(ConfigError, match=f"is not run first without {A}"):
        without_task(first.run_dir, A, run_id=plan.run_dir.name, storage=tmp_path, partial=False)


def test_a_later_run_learns_the_task_again(tmp_path: Path) -> None:
    first = first_run(tmp_path, "individual")
    config, origin = without_task(first.run_dir, B, run_id="less", storage=tmp_path, partial=False)
    less = plan_stream(config, origin)
    claim_run_dir(less)
    more = replace(config, run_id="more")
    plan = plan_stream(more, new_origin(more, less.run_dir, None, score_again=True))
    assert plan.stream.task_names == [A, C, B]
    assert plan.num_tasks == 3
    assert [each.num_updates > 0 for each in plan.schedule] == [False, False, True]


def test_traces_need_partial_and_sharing_names_the_way_out(tmp_path: Path) -> None:
    folder = first_run(tmp_path / "a", "o_lora").run_dir
    with pytest.raises(ConfigError, match=r"later branches were trained.*--partial"):
        without_task(folder, B, run_id=None, storage=tmp_path, partial=False)
    _, origin = without_task(folder, B, run_id=None, storage=tmp_path, partial=True)
    assert origin.unlearned is not None
    assert origin.unlearned.traces
    shared = first_run(tmp_path / "b", "sequential_lora").run_dir
    with pytest.raises(ConfigError, match=r"shared by them.*--continue-from first --at-task 2"):
        without_task(shared, C, run_id=None, storage=tmp_path, partial=False)


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = first_run(tmp_path, "individual")
    assert unlearn.main(["first", B, "--storage", str(tmp_path), "--dry-run"]) == 0
    assert "nothing of it stays" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [first.run_dir.name]


def test_a_run_that_was_recorded_beside_itself_and_lies_in_a_store_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow's SQLite file stayed behind; the new run is recorded elsewhere, or not at all."""
    first = first_run(tmp_path, "individual").run_dir
    there = place("memory://moved/runs/first")
    assert isinstance(first, Path)
    assert isinstance(there, Location)
    config = json.loads((first / "config.json").read_text())
    config["tracking"]["enabled"] = True
    (first / "config.json").write_text(json.dumps(config))
    for file in first.rglob("*"):
        if file.is_file():
            (there / str(file.relative_to(first))).put(file)
    given = [there.uri, B, "--dry-run"]
    with pytest.raises(ConfigError, match=r"give --tracking\.uri .*, or --tracking\.no-enabled"):
        unlearn.main(given)
    assert unlearn.main([*given, "--tracking.no-enabled"]) == 0
    assert unlearn.main([*given, "--tracking.uri", "http://127.0.0.1:9"]) == 0
    assert "nothing of it stays" in capsys.readouterr().out
    more = ("--run-id", "more", "--stream.order", *TASKS, "medicalqa", "--tracking.no-enabled", "--dry-run")
    assert coast.main(["--continue-from", there.uri, *more]) == 0
    assert f"learned already: run first after task 3 ({C})" in " ".join(capsys.readouterr().out.split())
