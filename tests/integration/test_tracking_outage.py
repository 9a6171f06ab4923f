"""MLflow's server stalls under a run, or never answers again: the run ends well, and its record is made whole.

Scaled down: a request may take 1 s, not 20 s (MLFLOW_HTTP_REQUEST_TIMEOUT), so a stall of `STALL_S` is to it what one
of two minutes is to a run as users have it: each call fails for good, and the sender pauses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow_server import Store
from recorded_whole import differences
from stalling_proxy import StallingProxy

from components.training.streaming import WINDOW_ROWS

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("large", "small")
TEST_ROWS = {"large": WINDOW_ROWS + 8, "small": 4}  # the first task's are read by Ray Data, the other's by the worker
STALL_S = 12.0
WAIT_S = 15.0
ENVIRONMENT = {**os.environ, "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    started = Store(tmp_path_factory.mktemp("store"))
    yield started
    started.kill()


@pytest.fixture
def proxy(store: Store) -> Iterator[StallingProxy]:
    with StallingProxy(store.port) as started:
        yield started


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks without pictures."""
    folder = tmp_path_factory.mktemp("data")
    described = ['name = "outage"']
    for task in TASKS:
        for part, count in (("train", 16), ("test", TEST_ROWS[task])):
            turns = [[{"from": "human", "value": f"{row}?"}, {"from": "gpt", "value": task}] for row in range(count)]
            rows = [{"id": f"{task}-{part}-{row}", "conversations": each} for row, each in enumerate(turns)]
            (folder / f"{task}-{part}.json").write_text(json.dumps(rows))
        paths = [f'{part} = "{folder / f"{task}-{part}.json"}"' for part in ("train", "test")]
        described += ["[[task]]", f'name = "{task}"', *paths, 'metric = "exact"', "max_new_tokens = 2"]
    (folder / "outage.toml").write_text("\n".join(described) + "\n")
    return folder / "outage.toml"


def command_of(stream: Path, storage: Path, run_id: str, port: int) -> list[str]:
    command = [sys.executable, "pipelines/coast.py", "pocket", "--method", "sequential-lora", "--run-id", run_id]
    command += ["--storage", str(storage), "--stream.name", str(stream), "--evaluation.batch-size", "64"]
    return [*command, "--tracking.uri", f"http://127.0.0.1:{port}", "--tracking.wait-s", str(WAIT_S)]


def started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def lines_until(process: subprocess.Popen[str], begin: str) -> str:
    """What the run says up to the first line that begins so."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith(begin):
            return said
    raise AssertionError(f"no line {begin!r}: {said}")


def completed(command: list[str]) -> str:
    again = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "Task 1/2" not in again.stdout  # nothing is learned again
    return again.stdout + again.stderr


@pytest.mark.long
def test_a_store_that_stalls_gets_everything_once(
    store: Store, proxy: StallingProxy, stream: Path, tmp_path: Path
) -> None:
    process = started(command_of(stream, tmp_path, "stalled", proxy.port))
    said = lines_until(process, "Task 1/2")
    proxy.stall()
    time.sleep(STALL_S)
    assert proxy.held
    proxy.go_on()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said + out
    assert "Traceback" not in said + out
    assert differences(tmp_path / "stalled", store.uri) == []


@pytest.mark.long
def test_a_store_that_never_returns_costs_a_sentence(
    store: Store, proxy: StallingProxy, stream: Path, tmp_path: Path
) -> None:
    """From the first task on it is silent; when it is back, the same command completes the record."""
    command = command_of(stream, tmp_path, "left", proxy.port)
    process = started(command)
    said = lines_until(process, "Task 1/2")
    proxy.stall()
    said += lines_until(process, "MLflow is still taking what this run recorded (")
    ended = time.monotonic()
    assert (tmp_path / "left" / "finished.json").is_file()  # training did not wait
    names = {child.name() for child in psutil.Process(process.pid).children(recursive=True)}
    assert not names & {"raylet", "gcs_server"}  # Ray has been let go
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said + out
    assert time.monotonic() - ended < WAIT_S + 30
    assert "MLflow does not have all of this run yet" in " ".join(out.split())
    assert "the same command sends the rest later" in " ".join(out.split())
    assert "Traceback" not in said + out
    assert differences(tmp_path / "left", store.uri) != []

    waiting = completed(command)  # the store is still away
    assert "its record waits" in " ".join(waiting.split())
    proxy.go_on()
    completed(command)
    assert differences(tmp_path / "left", store.uri) == []


@pytest.mark.long
def test_killed_while_it_waits_for_a_store_it_says_what_to_do(
    store: Store, proxy: StallingProxy, stream: Path, tmp_path: Path
) -> None:
    command = command_of(stream, tmp_path, "killed", proxy.port)
    process = started(command)
    lines_until(process, "Task 1/2")
    proxy.stall()
    lines_until(process, "MLflow is still taking what this run recorded (")
    process.kill()
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == (
        "error: this process was killed while it waited for MLflow; the run's own files are whole: "
        "run the same command with --run-id killed to continue"
    )
    proxy.go_on()
    completed(command)
    assert differences(tmp_path / "killed", store.uri) == []
