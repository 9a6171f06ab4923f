"""What a run was made with: code, package versions, machine and budget, kept in the run's folder.

Each start and each continuation has an entry, since the code and the machine may differ. The machine is the driver's;
those of workers on other nodes are not recorded.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from components.core.errors import ConfigError
from components.core.files import write_json
from components.core.fingerprint import code_fingerprint
from components.core.location import Place
from components.core.machine import cpu_model
from components.core.naming import git_commit
from components.core.reading import read_object

MADE_WITH_FILE = "made_with.json"
PACKAGES = ("littoral", "torch", "transformers", "ray", "deepspeed", "peft", "numpy")
UNKNOWN = "unknown"
DIRTY = "-dirty"

Facts = dict[str, Any]  # plain JSON


def add_session(
    run_dir: Place,
    *,
    budget: Mapping[str, object],
    cores: int,
    gpu: bool,
    execution: Mapping[str, str] | None = None,
) -> None:
    """Note in the run's folder that it is started or continued now; `cores` are those its workers use together.

    `execution`: the options that may differ from session to session.
    """
    path = run_dir / MADE_WITH_FILE
    sessions = made_with(run_dir).get("sessions", [])
    now = {**session(cores=cores, gpu=gpu), "execution": dict(execution or {})}
    content = {"budget": dict(budget), "sessions": [*sessions, now]}
    write_json(path, content)


def made_with(run_dir: Place) -> Facts:
    """What `add_session` noted: budget and sessions; empty for a run of an earlier version."""
    path = run_dir / MADE_WITH_FILE
    return read_object(path, ConfigError, "delete it to go on without these facts") if path.is_file() else {}


def session(*, cores: int, gpu: bool) -> Facts:
    """Code, versions and machine as they are now."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "code": {**commit_facts(git_commit()), "fingerprint": code_fingerprint()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "cores_used": cores,
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": _gpus() if gpu else [],
        },
    }


def commit_facts(commit: str | None) -> Facts:
    """The parts of what `git_commit` gives; `dirty`: tracked files differed, None: unknown."""
    if commit is None:
        return {"commit": UNKNOWN, "dirty": None}
    return {"commit": commit.removesuffix(DIRTY), "dirty": commit.endswith(DIRTY)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpus() -> list[str]:
    """Names of the machine's NVIDIA GPUs; torch would open a context on each, which takes memory."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.split("\n")[:-1]
