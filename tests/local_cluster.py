"""A cluster of several Ray nodes on this machine, by clusters/local.sh, as tests use it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from local_servers import free_ports

ROOT = Path(__file__).resolve().parents[1]
RAY = Path(sys.executable).with_name("ray")
START_TIMEOUT_S = 330


class LocalCluster:
    """Nodes that are started, killed and replaced; `state` is a folder for what the script keeps."""

    def __init__(self, state: Path) -> None:
        head, self.dashboard = free_ports(2)
        self.state, self.address = state, ""
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DASHBOARD_"))}
        self.environment = {
            **outside,
            "PATH": f"{RAY.parent}{os.pathsep}{outside['PATH']}",
            "LITTORAL_STATE": str(state),
            "RAY_PORT": str(head),
            "DASHBOARD_PORT": str(self.dashboard),
            "RAY_AUTH_MODE": "token",
            "COLUMNS": "80",  # as some shells export it: ps cuts its lines then
        }

    def start(self, *options: str) -> str:
        """Start the nodes; what the script said."""
        said = self("start", *options)
        found = re.search(r"^Dashboard: (http://\S+)$", said, re.MULTILINE)
        assert found is not None, said
        self.address = found[1]
        return said

    @property
    def host(self) -> str:
        """The head's address."""
        return self.address.removeprefix("http://").partition(":")[0]

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["clusters/local.sh", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, run_id: str, *arguments: str, options: Sequence[str] = ()) -> subprocess.Popen[str]:
        """The helper that submits a run and prints its lines."""
        command = [sys.executable, "clusters/submit.py", "--address", self.address, *options, run_id, *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def job(self, command: str, *arguments: str) -> str:
        """`ray job COMMAND`, and what it printed."""
        done = subprocess.run(
            [RAY, "job", command, "--address", self.address, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_TIMEOUT_S,
        )
        return done.stdout

    def folder(self, node: int) -> Path:
        """What a node may write to."""
        noted = (self.state / f"cluster-{self.dashboard}" / "nodes").read_text()
        found = re.search(r'work="(.+)"', noted)
        assert found is not None
        return Path(found[1]) / str(node)

    def processes(self, node: int) -> set[str]:
        """Titles of Ray's worker processes on a node, such as `ray::RayTrainWorker`."""
        titles: set[str] = set()
        try:
            for each in psutil.Process(int((self.folder(node) / "pid").read_text())).children(recursive=True):
                try:
                    titles |= {word for word in each.cmdline()[:1] if word.startswith("ray::")}
                except psutil.NoSuchProcess:
                    continue
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):  # it was killed
            pass
        return titles
