"""clusters/: what the Slurm job and the nightly job do, with stand-ins for the programs of a cluster on PATH."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cluster_files import OPTIONS, nightly_script, texts

SHARED = OPTIONS["run"]["shared"]


def program(folder: Path, name: str, script: str) -> None:
    """A program that notes how it was called in calls.txt, and then does what the script says."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f'#!/bin/sh\necho {name} "$@" >>{folder}/calls.txt\n{script}\n')
    file.chmod(0o755)


def calls(folder: Path) -> str:
    file = folder / "calls.txt"
    return file.read_text() if file.exists() else ""


def slurm_job(folder: Path, srun: str) -> subprocess.Popen[str]:
    programs = folder / ".venv" / "bin"
    program(programs, "ray", "true")
    program(programs, "srun", srun)
    program(programs, "scontrol", "true")
    (folder / "shared" / "runs" / "first").mkdir(parents=True)
    (folder / "coast.sbatch").write_text(texts()["slurm/coast.sbatch"])
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "40",
        "LITTORAL_SHARED": str(folder / "shared"),
        "HEAD_IP": "10.0.0.1",
    }
    return subprocess.Popen(
        ["bash", "coast.sbatch", "--seed", "3"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("code", [0, 3])
def test_a_slurm_job_ends_as_its_run_does(tmp_path: Path, code: int) -> None:
    job = slurm_job(tmp_path, f"exit {code}")
    assert job.wait(60) == code
    called = calls(tmp_path / ".venv" / "bin")
    assert "ray get-auth-token --generate" in called
    assert "scontrol" not in called
    workers = 2 * OPTIONS["gpu"]["gpus"]
    assert "ray symmetric-run --address 10.0.0.1:6379 --min-nodes 2 --num-cpus 40" in called
    assert f"--cluster.address 10.0.0.1:6379 --cluster.num-workers {workers} --cluster.use-gpu true --seed 3" in called


def test_a_slurm_job_stops_in_order_before_its_time_is_over(tmp_path: Path) -> None:
    stop = tmp_path / "shared" / "runs" / "first" / "stop"
    job = slurm_job(tmp_path, f"until [ -e {stop} ]; do sleep 0.05; done; sleep 0.3; exit 143")
    programs = tmp_path / ".venv" / "bin"
    deadline = time.monotonic() + 60
    while "srun" not in calls(programs):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # the shell goes on from starting it to waiting for it
    assert not stop.exists()
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 143
    assert stop.exists()
    assert calls(programs).splitlines()[-1] == "scontrol requeue 17"


def test_a_slurm_job_without_the_folder_or_the_program_says_so(tmp_path: Path) -> None:
    (tmp_path / "coast.sbatch").write_text(texts()["slurm/coast.sbatch"])
    given = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), "LITTORAL_SHARED": str(tmp_path / "none")}
    for missing in (".venv/bin/ray", str(tmp_path / "none")):
        found = subprocess.run(["bash", "coast.sbatch"], cwd=tmp_path, env=given, capture_output=True, text=True)
        assert found.returncode == 1
        assert missing in found.stderr
        assert found.stderr.count("\n") == 1
        program(tmp_path / ".venv" / "bin", "ray", "true")


def night(folder: Path, code: int, *, gate: str | None = None) -> subprocess.CompletedProcess[str]:
    """A night whose job writes what was decided, if anything was, and ends with `code`."""
    runs = folder / "runs" / "nightly-2026-01-31"
    decided = "" if gate is None else f"mkdir -p {runs}; echo {gate} >{runs}/gate.json; "
    program(folder / "bin", "ray", f"{decided}exit {code}")
    script = nightly_script().replace(SHARED, str(folder))
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)


def test_a_night_judges_the_newest_stream_once(tmp_path: Path) -> None:
    nightly = tmp_path / "nightly"
    for day in ("2026-01-30", "2026-01-31", "notes"):
        (nightly / day).mkdir(parents=True)
    assert night(tmp_path, 0, gate="accepted").returncode == 0
    (called,) = calls(tmp_path / "bin").splitlines()
    assert called.startswith("ray job submit --address http://littoral-head-svc:8265 -- littoral nightly --model ")
    assert f"--stream.name {nightly}/2026-01-31 --run-id nightly-2026-01-31 --storage {tmp_path}/runs " in called
    again = night(tmp_path, 1)
    assert (again.returncode, again.stdout) == (0, f"no stream in {nightly} that was not judged yet\n")
    assert len(calls(tmp_path / "bin").splitlines()) == 1
    (nightly / "2026-02-01").mkdir()
    assert night(tmp_path, 0).returncode == 0
    assert "--run-id nightly-2026-02-01 " in calls(tmp_path / "bin").splitlines()[-1]


def test_a_night_that_fails_is_tried_again_and_one_that_is_refused_is_not(tmp_path: Path) -> None:
    (tmp_path / "nightly" / "2026-01-31").mkdir(parents=True)
    assert night(tmp_path, 1).returncode == 1
    refused = night(tmp_path, 1, gate="rejected")
    assert (refused.returncode, refused.stdout) == (3, "rejected\n")  # the code that fails the job at once
    assert len(calls(tmp_path / "bin").splitlines()) == 2
    assert night(tmp_path, 0).returncode == 0
    assert len(calls(tmp_path / "bin").splitlines()) == 2


def test_a_night_without_a_stream_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "nightly").mkdir()
    assert night(tmp_path, 0).returncode == 0
    assert calls(tmp_path / "bin") == ""
