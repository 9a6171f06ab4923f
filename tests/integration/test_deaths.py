"""Processes killed in the middle of a stream: it goes on by itself, or ends with one sentence, and the same command
goes on from there."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from components.core.machine import host_name

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 30  # Ray itself would take more than 60


def started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """The lines of a command's output up to the first that holds a text."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"no line with {text!r}: {''.join(lines)}{process.stderr and process.stderr.read()}")


def kill(process: subprocess.Popen[str], what: str, *, of: int = 1) -> int:
    """SIGKILL for the first of as many processes of a command that are called `what`; its id."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if " ".join(child.cmdline()).split("/")[-1].startswith(what) or child.name() == what:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    assert len(found) == of, (what, found)
    found[0].kill()
    return found[0].pid


def ended(process: subprocess.Popen[str]) -> str:
    """What a command said at last on stderr, once it has ended by itself as after an error."""
    asked = time.monotonic()
    _, said = process.communicate(timeout=120)
    assert time.monotonic() - asked < SOON_S
    assert process.returncode == 1, said
    assert len(own_lines(said)) == 1, said
    return own_lines(said)[0]


def own_lines(said: str) -> list[str]:
    """The lines of stderr but for that on processes that the Rays of tests beside this one had left."""
    return [line for line in said.splitlines() if not re.fullmatch(r"Ended .* that a Ray had left\.", line)]


def status(storage: Path, run: str) -> str:
    link = json.loads((storage / run / "mlflow.json").read_text())
    return MlflowClient(f"sqlite:///{storage / 'mlflow.db'}").get_run(link["run_id"]).info.status


def command(storage: Path, *options: str) -> list[str]:
    given = [sys.executable, "pipelines/coast.py", "pocket", "--method", "sequential-lora", "--run-id", "killed"]
    given += ["--storage", str(storage), "--stream.order", "chartqa", "docvqa", "--training.epochs", "12"]
    return [*given, "--training.checkpoint-every-updates", "4", "--evaluation.limit", "2", *options]


def test_a_run_outlives_its_only_worker(tmp_path: Path) -> None:
    process = started(command(tmp_path))
    read_until(process, "Task 1/2")
    killed = kill(process, "ray::LocalWorker")
    partial = tmp_path / "killed" / f".checkpoint_2026-01-01.{host_name()}.{killed}.partial"
    partial.mkdir()  # it may have been writing one
    said = read_until(process, "(try 1 of 3)")[-1]
    assert "the worker process, process " in said
    assert "going on from the last checkpoint" in said
    read_until(process, "Task 2/2")
    process.send_signal(signal.SIGSTOP)  # it is to notice once the list is torn as well
    kill(process, "ray::LocalWorker")
    (tmp_path / "killed" / "checkpoint_manager_snapshot.json").write_text("")
    process.send_signal(signal.SIGCONT)
    read_until(process, "(try 1 of 3)")  # counted anew: there were checkpoints in between
    read_until(process, "checkpoint_manager_snapshot.json of run killed cannot be read")
    _, errors = process.communicate(timeout=200)
    assert (process.returncode, own_lines(errors)) == (0, []), errors
    assert not partial.exists()
    assert status(tmp_path, "killed") == "FINISHED"


@pytest.mark.long
def test_a_run_outlives_its_workers_and_their_controller(tmp_path: Path) -> None:
    process = started(command(tmp_path, "--cluster.num-workers", "2"))
    read_until(process, "Task 1/2")
    kill(process, "ray::RayTrainWorker", of=2)
    said = read_until(process, "(try 1 of 3)")[-1]
    assert re.search(r"a worker process \(rank [01]\), process ", said)
    assert "going on from the last checkpoint" in said
    read_until(process, "Task 2/2")
    process.send_signal(signal.SIGSTOP)  # it is to notice once the list is as a controller leaves it that writes it
    kill(process, "ray::TrainController")
    (tmp_path / "killed" / "checkpoint_manager_snapshot.json").write_text("")
    process.send_signal(signal.SIGCONT)
    said = read_until(process, "(try 1 of 3)")[-1]  # counted anew: there were checkpoints in between
    assert "Ray Train's controller process, process " in said
    said = read_until(process, "checkpoint_manager_snapshot.json of run killed cannot be read")[-1]
    assert re.search(
        r"the run continues from (checkpoint_|01-chartqa)\S+, and (no update is lost|\d+ updates? (is|are) )", said
    )
    _, errors = process.communicate(timeout=200)
    assert (process.returncode, own_lines(errors)) == (0, []), errors
    assert status(tmp_path, "killed") == "FINISHED"


def test_a_run_whose_ray_is_lost_ends_soon_and_the_same_command_goes_on(tmp_path: Path) -> None:
    process = started(command(tmp_path))
    read_until(process, "Task 2/2")
    kill(process, "gcs_server")
    said = ended(process)
    assert said.startswith("error: Ray was lost: its control service (gcs_server) was ended by SIGKILL; its logs are")
    assert said.endswith("the same command with --run-id killed goes on from the last checkpoint.")
    assert status(tmp_path, "killed") == "FAILED"
    process = started(command(tmp_path))
    read_until(process, "continuing at task 2 of 2")
    kill(process, "raylet")
    assert "its node process (raylet) was ended by SIGKILL" in ended(process)
    assert status(tmp_path, "killed") == "FAILED"
