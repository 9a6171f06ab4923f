"""Runs in an S3-compatible store: the bits of a run in a folder, whatever happens to the run or to the store.

    python -m pytest tests/integration/test_runs_in_a_store.py

One Ray session serves the runs of the first test.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_bits import learned_bits
from local_servers import SOMEBODY, s3_server, s3_uri
from mlflow_server import Store
from stalling_proxy import StallingProxy

from components.core.events import Event, TaskStarted
from components.core.holder import Held
from components.core.location import Location, locate
from components.core.ray_session import ray_session
from components.core.tickets import held
from components.methods import METHODS
from components.runs.execute import run_and_record
from components.runs.status import RunStatus, read_status
from components.tracking.config import TrackingConfig
from components.training.config import ClusterConfig, RunConfig
from components.training.plan import plan_stream
from pipelines import report
from pipelines.presets import pocket

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("iconqa", "docvqa")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of the store's server. Its address is in the URIs, and who asks in the environment, also of Ray's processes."""
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3"), "shop") as found:
        for name, value in SOMEBODY.items():
            patch.setenv(name, value)
        yield found


def bucket(port: int, folder: str) -> str:
    return s3_uri(port, f"shop/{folder}")


def config_of(storage: str | Path, run_id: str) -> RunConfig:
    preset = pocket()
    return replace(
        preset,
        run_id=run_id,
        storage=storage,
        stream=replace(preset.stream, size="nano", order=TASKS, test_limit=4),
        method=METHODS["sequential_lora"].tiny(),
        training=replace(preset.training, updates_per_task=4, checkpoint_every_updates=2),
        cluster=ClusterConfig(num_workers=1, threads_per_worker=1),
        tracking=TrackingConfig(enabled=False),
    )


def downloaded(where: Location, folder: Path) -> Path:
    """All files of a run in a store, in a folder of this machine."""
    for name in where.files_below():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).fetch(folder / name)
    return folder


def bits(run: Path) -> dict[str, str]:
    """What a run ends with: the method after each task, matrices, predictions."""
    files = [file for pattern in ("*_matrix.json", "predictions/*.parquet") for file in run.glob(pattern)]
    found = {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert len(found) >= 4
    return found | {name: json.dumps(tensors, sort_keys=True) for name, tensors in learned_bits(run).items()}


def test_it_ends_as_one_in_a_folder(port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While it runs, its lock names its holder; status and report read it."""
    said: dict[str, str] = {}
    with ray_session(None, num_workers=1):
        run_and_record(plan_stream(config_of(tmp_path / "runs", "first")), lambda _: None)
        plan = plan_stream(config_of(bucket(port, "runs"), "first"))
        assert isinstance(plan.run_dir, Location)
        lock = plan.run_dir / ".lock"

        def follow(event: Event) -> None:
            if isinstance(event, TaskStarted) and event.index == 1:
                with pytest.raises(Held) as found, held(lock, lambda _: False):
                    pass
                said["holder"] = str(found.value)
                said["state"] = read_status(plan.run_dir).state

        run_and_record(plan, follow)
    assert said["holder"].startswith(f"process {os.getpid()} on {socket.gethostname()} since 20")
    assert said["state"] == "running"
    assert bits(downloaded(plan.run_dir, tmp_path / "there")) == bits(tmp_path / "runs" / "first")
    assert read_status(plan.run_dir).state == "finished"
    assert [*lock.glob("*")] == []
    assert report.main([bucket(port, "runs/first")]) == 0
    assert "iconqa" in capsys.readouterr().out


@pytest.mark.long
def test_stopped_it_says_how_to_go_on(port: int, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    said, run = tmp_path / "said", locate(bucket(port, "stopped/r"))
    given = command(bucket(port, "stopped"), "--tracking.no-enabled")
    process = start(given, said)
    wait_for_second_task(process, run, said)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=100) == 143
    stopped = read_status(run)
    assert isinstance(stopped, RunStatus)
    assert stopped.state == "stopped"
    assert bucket(port, "stopped/r/config.json") in stopped.command
    assert "continuing at task 2 of 2" in finish([*shlex.split(stopped.command)], said)
    assert bits(downloaded(run, tmp_path / "there")) == undisturbed


# ---- by the command


def command(storage: str, *options: str) -> list[str]:
    return [
        *(sys.executable, "pipelines/coast.py", "pocket", "--method", "sequential-lora", "--run-id", "r"),
        *("--storage", storage, "--stream.size", "nano", "--stream.order", *TASKS, "--evaluation.limit", "4"),
        *("--training.updates-per-task", "40", "--training.checkpoint-every-updates", "5", *options),
    ]


def start(given: list[str], said: Path) -> subprocess.Popen[bytes]:
    with said.with_suffix(".out").open("wb") as out, said.with_suffix(".err").open("wb") as err:
        return subprocess.Popen(given, cwd=ROOT, stdout=out, stderr=err, start_new_session=True)


def finish(given: list[str], said: Path) -> str:
    """Run the command to its end, which must be a good one; what it printed, in one line."""
    code = start(given, said).wait(timeout=200)
    errors = said.with_suffix(".err").read_text()
    assert code == 0, errors[-3000:]
    return " ".join((said.with_suffix(".out").read_text() + errors).split())


def wait_for_second_task(process: subprocess.Popen[bytes], run: Location, said: Path) -> None:
    while not (run / "checkpoints" / f"01-{TASKS[0]}" / "state.json").is_file():
        assert process.poll() is None, said.with_suffix(".err").read_text()[-3000:]
        time.sleep(0.1)
    done = len([*run.glob("checkpoint_2*")])
    while len([*run.glob("checkpoint_2*")]) == done and process.poll() is None:
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(command(str(folder / "runs"), "--tracking.no-enabled"), folder / "said")
    return bits(folder / "runs" / "r")


@pytest.mark.long
def test_killed_it_goes_on_with_the_same_bits(port: int, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """And a second start is refused. MLflow may lack what came in the seconds before the kill."""
    server, said, storage = Store(tmp_path), tmp_path / "said", bucket(port, "killed")
    try:
        given, run = command(storage, "--tracking.uri", server.uri), locate(bucket(port, "killed/r"))
        process = start(given, said)
        while not [*(run / ".lock").glob("*")]:
            assert process.poll() is None, said.with_suffix(".err").read_text()[-3000:]
            time.sleep(0.1)
        second = start(given, tmp_path / "second")  # it takes less time to be refused than the first to get so far
        wait_for_second_task(process, run, said)
        assert second.wait(timeout=100) == 1
        refusal = (tmp_path / "second.err").read_text()
        assert refusal.startswith(f"error: run r is already running in s3://shop/killed/r (process {process.pid} on ")
        assert refusal.count("\n") == 1
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert "continuing at task 2 of 2" in finish(given, said)
        there = downloaded(run, tmp_path / "there")
        assert bits(there) == undisturbed
        assert "127.0.0.1" not in (there / "origin.json").name
    finally:
        server.kill()


@pytest.mark.long
def test_a_store_that_is_gone_for_a_while_costs_nothing(port: int, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    with StallingProxy(port) as proxy:
        said, run = tmp_path / "said", locate(bucket(port, "stalled/r"))
        process = start(command(bucket(proxy.port, "stalled"), "--tracking.no-enabled"), said)
        wait_for_second_task(process, run, said)
        proxy.stall()
        time.sleep(8)
        proxy.go_on()
        assert process.wait(timeout=100) == 0, said.with_suffix(".err").read_text()[-3000:]
        assert proxy.held
        assert bits(downloaded(run, tmp_path / "there")) == undisturbed


@pytest.mark.long
def test_a_store_that_is_gone_for_good_costs_a_sentence(port: int, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    with StallingProxy(port) as proxy:
        said, run = tmp_path / "said", locate(bucket(port, "gone/r"))
        process = start(command(bucket(proxy.port, "gone"), "--tracking.no-enabled"), said)
        wait_for_second_task(process, run, said)
        proxy.stall()
        began = time.monotonic()
        assert process.wait(timeout=200) == 1
        assert time.monotonic() - began < 120
        proxy.go_on()
    errors = said.with_suffix(".err").read_text()
    assert errors.splitlines()[-1].startswith("error: s3://shop/gone/r")
    assert errors.splitlines()[-1].endswith("the same command with --run-id r goes on from the last checkpoint.")
    assert "Traceback" not in errors
    finish(command(bucket(port, "gone"), "--tracking.no-enabled"), said)
    assert bits(downloaded(run, tmp_path / "there")) == undisturbed
