"""What a record says of how it was made, and that it starts the same run again."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from finished_runs import STREAM, finished

from components.data.streams import open_stream
from components.evaluation.majority import majority_score
from components.methods.sequential_lora import SequentialLoraConfig
from components.runs.provenance import UNKNOWN, add_session, commit_facts, made_with
from components.runs.results import TaskFacts, read_run, task_facts, write_record
from components.tracking.config import TrackingConfig
from components.training.config import RunConfig
from pipelines.cli import parse
from pipelines.presets import data_note

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted(set((ROOT / "docs" / "results").glob("*/*.json")) - set((ROOT / "docs/results/campaigns").iterdir()))


def started_from(path: Path, *options: str) -> RunConfig:
    return parse([str(path), *options], program="coast.py", description="").run


@pytest.fixture
def record(tmp_path: Path) -> Path:
    method = SequentialLoraConfig(rank=4)
    config = RunConfig(stream=STREAM, method=method, run_id="a", tracking=TrackingConfig(enabled=False))
    folder = finished(tmp_path, config, [[80.0, None], [60.0, 50.0]])
    add_session(folder, budget={"updates": {"docvqa": 4}}, cores=3, gpu=False)
    add_session(folder, budget={"updates": {"docvqa": 4}}, cores=2, gpu=False)
    return write_record(read_run(folder), tmp_path / "records")


def test_a_record_tells_code_versions_machine_and_budget(record: Path) -> None:
    made = json.loads(record.read_text())["made_with"]
    assert made["budget"] == {"updates": {"docvqa": 4}}
    first, second = made["sessions"]
    assert (first["hardware"]["cores_used"], second["hardware"]["cores_used"]) == (3, 2), "it went on with fewer"
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert first["code"]["commit"] == (head.stdout.strip() if head.returncode == 0 else UNKNOWN)
    assert first["versions"]["python"] == platform.python_version()
    assert first["versions"]["torch"] == importlib.metadata.version("torch")
    assert first["hardware"]["memory_gib"] > 0
    assert first["hardware"]["cores"] >= 1
    assert first["started"] <= second["started"]


def test_a_commit_is_told_with_whether_files_differed() -> None:
    assert commit_facts(None) == {"commit": UNKNOWN, "dirty": None}
    assert commit_facts("abc-dirty") == {"commit": "abc", "dirty": True}
    assert commit_facts("abc") == {"commit": "abc", "dirty": False}


def test_a_run_of_an_earlier_version_says_nothing(tmp_path: Path) -> None:
    assert made_with(tmp_path) == {}


def test_a_record_holds_the_majority_answer_of_its_data(record: Path) -> None:
    stream, back = open_stream(STREAM), read_run(record)
    expected = {
        task.name: TaskFacts(identity=task.identity, majority=majority_score(task.train, task.test))
        for task in stream.tasks
    }
    assert task_facts(back) == expected
    gone = replace(back, tasks={}, stream_digest="0" * 64)
    assert task_facts(gone) == {}, "not that of other data"


def test_a_record_is_a_preset(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = started_from(record, "--seed", "3")
    assert (config.method, config.stream, config.seed) == (SequentialLoraConfig(rank=4), STREAM, 3)
    assert config.run_id is None
    assert "Warning" not in capsys.readouterr().err
    assert data_note(str(record), config, open_stream(STREAM).digest) is None
    assert "other data" in str(data_note(str(record), config, "0" * 64))
    larger = replace(config, stream=replace(STREAM, size="mini"))
    assert data_note(str(record), larger, "0" * 64) is None, "other data were asked for"


def test_what_a_record_of_another_version_sets_is_told(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(record.read_text())
    content["config"]["method"]["old_option"] = 3
    del content["config"]["training"]["epochs"]
    record.write_text(json.dumps(content))
    assert started_from(record).method == SequentialLoraConfig(rank=4)
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("a.json sets method.old_option, which this version does not have: left out.")
    assert said[1].endswith("which have their defaults: training.epochs = 1.")
    assert len(said) == 2


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_record_of_the_repository_starts_its_run(path: Path) -> None:
    stored = read_run(path).config
    config = started_from(path)
    assert (config.method, config.seed, config.training) == (stored.method, stored.seed, stored.training)
