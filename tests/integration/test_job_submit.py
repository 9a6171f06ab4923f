"""`ray job submit` for real: a cluster from clusters/local.sh, a submitted pocket run, the same matrix as a direct run.

python -m pytest tests/integration/test_job_submit.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_servers import free_ports, reachable_from_elsewhere

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
            f"RAY_AUTH_MODE=token ray job submit --address {address} --working-dir . -- python pipelines/coast.py"
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


def submit(cluster: tuple[str, dict[str, str]], *options: str, auth_mode: str = "token") -> tuple[int, str]:
    """Submit coast.py and wait for it: exit code and everything it printed."""
    address, environment = cluster
    command = [str(RAY), "job", "submit", "--address", address, "--working-dir", "."]
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


def test_the_cluster_is_closed_without_a_token(cluster: tuple[str, dict[str, str]]) -> None:
    code, output = submit(cluster, "--dry-run", auth_mode="disabled")
    assert code != 0
    assert "401" in output or "nauthorized" in output, output[-2000:]


def test_relative_storage_is_refused_in_a_job(cluster: tuple[str, dict[str, str]]) -> None:
    code, output = submit(cluster, "--run-id", "lost", "--storage", "runs")
    assert code != 0
    assert "error: storage 'runs' is relative" in output, output[-2000:]
    assert "Traceback" not in output


def test_a_submitted_run_ends_with_the_matrix_of_a_direct_run(
    cluster: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    direct = [sys.executable, "pipelines/coast.py", *RUN, "--run-id", "direct", "--storage", str(tmp_path)]
    result = subprocess.run(
        direct, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_TIMEOUT_S
    )
    assert result.returncode == 0, result.stdout[-3000:]

    code, output = submit(cluster, "--run-id", "job", "--storage", str(tmp_path))
    assert code == 0, output[-3000:]
    assert "Score matrix" in output

    for name in ("score_matrix.json", "oracle_matrix.json"):
        expected, found = (json.loads((tmp_path / run / name).read_text()) for run in ("direct", "job"))
        assert found == expected, name
