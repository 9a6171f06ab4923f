"""Commands that read one run at a URI and write another, and sweeps there: the bits of the same in folders.

    python -m pytest tests/integration/test_between_stores.py -m long

One Ray session serves all runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_bits import learned_bits
from local_servers import SOMEBODY, s3_server

from components.core.location import Location, Place, locate, uri_or_path
from components.core.ray_session import ray_session
from components.methods import METHODS
from components.runs.execute import run_and_record
from components.runs.status import SweepStatus, read_status
from components.tracking.config import TrackingConfig
from components.training.config import ClusterConfig, RunConfig
from components.training.fork import new_origin
from components.training.plan import plan_stream
from pipelines import judge, report, sweep, unlearn
from pipelines.presets import pocket

A, B, C = "iconqa", "docvqa", "chartqa"

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a storage; its server's address is in the environment."""
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3"), "shop") as port:
        for name, value in SOMEBODY.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with ray_session(None, num_workers=1, trials=2):
            yield "s3://shop/runs"


def config_of(storage: str | Path, run_id: str, *order: str) -> RunConfig:
    preset = pocket()
    return replace(
        preset,
        run_id=run_id,
        storage=storage,
        stream=replace(preset.stream, size="nano", order=order, test_limit=4),
        method=METHODS["individual"].tiny(),
        training=replace(preset.training, updates_per_task=3),
        cluster=ClusterConfig(num_workers=1, threads_per_worker=1),
        tracking=TrackingConfig(enabled=False),
    )


def downloaded(where: Place, folder: Path) -> Path:
    """All files of a run in a store, in a folder of this machine."""
    assert isinstance(where, Location)
    for name in where.files_below():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).fetch(folder / name)
    return folder


def bits(run: Path) -> dict[str, str]:
    """The method after each task, scores and predictions; matrices also say which run they come from."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.glob("predictions/*.parquet")}
    found["scores"] = json.dumps(json.loads((run / "score_matrix.json").read_text())["rows"])
    assert len(found) > 2
    return found | {name: json.dumps(tensors, sort_keys=True) for name, tensors in learned_bits(run).items()}


def test_continued_from_and_unlearned(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = plan_stream(config_of(tmp_path / "runs", "first", A, B))
    run_and_record(first, lambda _: None)
    there = locate(f"{bucket}/first")
    for file in (tmp_path / "runs" / "first").rglob("*"):
        if file.is_file():
            (there / file.relative_to(tmp_path / "runs" / "first").as_posix()).put(file)
    for storage, source in ((tmp_path / "runs", first.run_dir), (bucket, there)):
        config = config_of(storage, "more", C)
        plan = plan_stream(config, new_origin(config, source, 1, score_again=False))
        run_and_record(plan, lambda _: None)
        assert unlearn.main(["first", A, "--storage", str(storage)]) == 0
        assert f"{A}: " in capsys.readouterr().out
    for name in ("more", f"first-without-{A}"):
        ours = bits(downloaded(locate(f"{bucket}/{name}"), tmp_path / "there" / name))
        assert ours == bits(tmp_path / "runs" / name), name
    assert uri_or_path(plan.origin.place if plan.origin else there) == f"{bucket}/first"
    assert judge.main([f"{bucket}/more", "--limit", "2", "--judge.model", "hash"]) == 0
    assert (locate(bucket) / "more" / "judged_matrix.json").is_file()
    assert len([*(locate(bucket) / ".cache" / "judge_cache.jsonl").glob("*.jsonl")]) == 1
    assert report.main([f"{bucket}/more"]) == 0
    assert C in capsys.readouterr().out


def test_a_sweep_shares_tasks_and_goes_on(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two orders with the same first task: it is learned once, and trials end with the bits of trials in a folder."""
    options = [
        *("pocket", "--method", "sequential-lora", "--sweep-id", "s", "--tracking.no-enabled", "--at-once", "1"),
        *("--stream.size", "nano", "--evaluation.limit", "4", "--evaluation.no-zero-shot", "--choose-on-test"),
        *("--training.updates-per-task", "3", "--space", f"stream.order=grid(('{A}', '{B}'), ('{A}', '{C}'))"),
    ]
    for storage in (str(tmp_path / "runs"), bucket):
        assert sweep.main([*options, "--storage", storage]) == 0
        said = capsys.readouterr().out
        assert "The trials made 9 optimizer updates; without shared tasks" in said
    there = locate(f"{bucket}/s")
    found = read_status(there)
    assert isinstance(found, SweepStatus)
    assert [each.state for each in found.trials] == ["finished", "finished"]
    for trial in found.trials:
        ours = bits(downloaded(there / trial.path.name, tmp_path / "there" / trial.path.name))
        assert ours == bits(tmp_path / "runs" / "s" / trial.path.name)
    before = (there / "sweep.json").read_bytes()
    assert sweep.main([*options, "--storage", bucket]) == 0  # finished trials are not run again
    assert "The trials made 9 optimizer updates" in capsys.readouterr().out
    assert json.loads((there / "sweep.json").read_bytes())["trials"] == json.loads(before)["trials"]
