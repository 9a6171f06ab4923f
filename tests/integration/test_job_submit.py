"""`ray job submit` for real: a cluster from clusters/local.sh, a submitted pocket run, the same matrix as a direct run.

python -m pytest tests/integration/test_job_submit.py
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from local_servers import free_ports, reachable_from_elsewhere
from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
RUN = ("pocket", "--seed", "3", "--stream.order", "chartqa", "iconqa")  # two tasks prove as much as four
START_TIMEOUT_S, RUN_TIMEOUT_S = 330, 600
pytestmark = pytest.mark.cluster
RAY = Path(sys.executable).with_name("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster on free ports: its job address, and the environment of a client."""
    head, dashboard, client = free_ports(3)
    ray_dir = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: Ray's socket paths have a limit of 107 characters
    state = tempfile.mkdtemp(prefix="littoral-cluster-")
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DASHBOARD_"))}
    environment = {
        **outside,
        "PATH": f"{RAY.parent}{os.pathsep}{outside['PATH']}",
        "RAY_PORT": str(head),
        "DASHBOARD_PORT": str(dashboard),
    }
    # The cluster's own files go to `state`; the data cache stays the one that direct runs use.
    script = {**environment, "LITTORAL_STATE": state}
    command = ["clusters/local.sh", "start", "--ray-client-server-port", str(client), "--temp-dir", ray_dir]
    try:
        started = subprocess.run(command, cwd=ROOT, env=script, capture_output=True, text=True, timeout=START_TIMEOUT_S)
        assert started.returncode == 0, started.stdout + started.stderr
        address = f"http://127.0.0.1:{dashboard}"
        expected = (
            f"RAY_AUTH_MODE=token ray job submit --address {address} --working-dir . --submission-id first -- "
            "python pipelines/coast.py --run-id first"
        )
        assert expected in started.stdout
        assert reachable_from_elsewhere(int((Path(state) / f"cluster-{dashboard}" / "pid").read_text())) == set()
        assert (Path.home() / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
        yield address, environment
    finally:
        stopped = subprocess.run(["clusters/local.sh", "stop"], cwd=ROOT, env=script, capture_output=True, text=True)
        shutil.rmtree(ray_dir, ignore_errors=True)
        shutil.rmtree(state, ignore_errors=True)
    assert stopped.stdout.strip() == "stopped", stopped.stdout + stopped.stderr


@pytest.fixture(scope="module")
def direct(
    cluster: tuple[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A storage, and a run `direct` in it that begins beside the jobs that are refused."""
    storage = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "pipelines/coast.py", *RUN, "--run-id", "direct", "--storage", str(storage)]
    with (storage / "said").open("wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
    yield storage, process
    process.terminate()
    process.wait(RUN_TIMEOUT_S)


def submit(
    cluster: tuple[str, dict[str, str]], *options: str, of_ray: Sequence[str] = (), auth_mode: str = "token"
) -> tuple[int, str]:
    """Submit coast.py and wait for it: exit code and everything it printed."""
    address, environment = cluster
    command = [str(RAY), "job", "submit", "--address", address, "--working-dir", ".", *of_ray]
    command += ["--", "python", "pipelines/coast.py", *RUN, *options]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, "RAY_AUTH_MODE": auth_mode},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    return result.returncode, result.stdout


@pytest.mark.usefixtures("direct")
def test_the_cluster_is_closed_without_a_token(cluster: tuple[str, dict[str, str]]) -> None:
    code, output = submit(cluster, "--dry-run", auth_mode="disabled")
    assert code != 0
    assert "401" in output or "nauthorized" in output, output[-2000:]


def test_what_is_uploaded_is_small(tmp_path: Path) -> None:
    """What Ray's own packer takes, which leaves out what .gitignore and .rayignore name, but compressed."""
    submit_py = runpy.run_path(str(ROOT / "clusters" / "submit.py"))
    package = submit_py["package"](tmp_path)
    assert package.stat().st_size < 5_000_000
    names = zipfile.ZipFile(package).namelist()
    assert {"pipelines/coast.py", "components/core/job.py", "clusters/runtime_env.yaml"} <= set(names)
    assert not [name for name in names if name.split("/")[0] in ("tests", "docs", ".git", "runs", "locks")]


def test_relative_storage_is_refused_in_a_job(cluster: tuple[str, dict[str, str]]) -> None:
    code, output = submit(cluster, "--run-id", "lost", "--storage", "runs")
    assert code != 0
    assert "error: storage 'runs' is relative" in output, output[-2000:]
    assert "Traceback" not in output


def test_a_job_whose_command_takes_all_cpus_is_refused_before_anything_is_written(
    cluster: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    code, output = submit(cluster, "--storage", str(tmp_path / "runs"), of_ray=("--entrypoint-num-cpus", "4"))
    assert code != 0
    refused = "1 worker needs 6 CPUs (one is left to reading data, 4 kept for the job's command), the cluster has 4"
    assert f"error: {refused}" in output, output[-2000:]
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and ".cache" not in path.parts] == []


def test_a_submitted_run_ends_with_the_matrix_of_a_direct_run(
    cluster: tuple[str, dict[str, str]], direct: tuple[Path, subprocess.Popen[bytes]]
) -> None:
    storage, process = direct
    assert process.wait(RUN_TIMEOUT_S) == 0, (storage / "said").read_text()[-3000:]

    # The run has the job's id.
    named = ("--submission-id", "job", "--entrypoint-num-cpus", "1")
    code, output = submit(cluster, "--storage", str(storage), of_ray=named)
    assert code == 0, output[-3000:]
    assert "Score matrix" in output
    of_the_run = [line for line in output.splitlines() if " cli.py:" not in line]  # Ray's command colours its own
    assert re.findall(r"[\x00-\x08\x0b-\x1f\x7f]", "\n".join(of_the_run)) == []

    for name in ("score_matrix.json", "oracle_matrix.json"):
        expected, found = (json.loads((storage / run / name).read_text()) for run in ("direct", "job"))
        assert found == expected, name


@pytest.mark.long
def test_a_job_is_stopped_in_order_and_goes_on(cluster: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = cluster
    helper = [sys.executable, "clusters/submit.py", "--address", address, "long", *RUN, "--storage", str(tmp_path)]
    helper += ["--training.epochs", "40", "--training.checkpoint-every-updates", "1000"]
    environment = {**environment, "RAY_AUTH_MODE": "token"}
    run = subprocess.Popen(
        helper, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert run.stdout is not None
    before = next(line for line in run.stdout if "update " in line and "task 1/2" in line)
    plain = {name: value for name, value in environment.items() if name != "RAY_AUTH_MODE"}
    again = subprocess.run(helper, cwd=ROOT, env=plain, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    assert (again.returncode, again.stdout) == (1, "")
    assert "error: job long is running; follow it with `RAY_AUTH_MODE=token ray job logs" in again.stderr
    subprocess.run([RAY, "job", "stop", "--address", address, "long"], cwd=ROOT, env=environment, check=True)
    said = run.stdout.read()
    assert run.wait(RUN_TIMEOUT_S) != 0
    assert "stopping in order; a second signal ends it at once" in said, before + said
    assert "terminated: run the same command with the same --run-id to continue" in said, before + said
    store = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    link = json.loads((tmp_path / "long" / "mlflow.json").read_text())
    assert store.get_run(link["run_id"]).info.status == "KILLED"
    checkpoint = max((tmp_path / "long").glob("checkpoint_*/state.json"))  # named by their times
    update = json.loads(checkpoint.read_text())["stream_state"]["update"]
    assert update > 0

    run = subprocess.Popen(
        helper, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert run.stdout is not None
    assert next(run.stdout).startswith("job long~2: python pipelines/coast.py")
    assert next(line for line in run.stdout if f"going on after update {update}" in line)
    subprocess.run([RAY, "job", "stop", "--address", address, "long~2"], cwd=ROOT, env=environment, check=True)
    assert "terminated" in run.stdout.read()
    assert run.wait(RUN_TIMEOUT_S) != 0
