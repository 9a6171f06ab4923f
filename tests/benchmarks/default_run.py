"""The README's main job on this machine, with empty caches: how long it takes, and is its matrix the recorded one.

    python tests/benchmarks/default_run.py [--install] [ARGUMENTS OF coast.py]

`--install` clones what is committed into an empty folder, does there what the README's command does, with its own
`.venv`, and times both halves of it; what pip has downloaded before is downloaded again. Bars: 240 s for the job, and
480 s with installation, on two quiet cores (seconds by the clock, so a busy machine misses them); the share of the
updates' time in which they wait for data, at most 1 %. The matrix must equal the one in `docs/results/default-run`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from components.runs.costs import Costs  # noqa: E402
from components.tracking.outbox import EVENTS_FILE  # noqa: E402
from tests.benchmarks.bars import print_bar  # noqa: E402

RECORD = ROOT / "docs" / "results" / "default-run" / "continual-llava-s0.json"
BAR_S, BAR_WITH_INSTALL_S, BAR_WAIT = 240, 480, 0.01
JOB = " && .venv/bin/python pipelines/coast.py"  # how the README's command ends


def install(clone: Path) -> float:
    """Seconds of cloning what is committed, and of installing it by the README's command into `clone`/.venv."""
    started = time.monotonic()
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    lines = (clone / "README.md").read_text().splitlines()
    line = next(line for line in lines if line.endswith(JOB))
    environment = os.environ | {"PIP_NO_CACHE_DIR": "1"}
    subprocess.run(["bash", "-c", line.removesuffix(JOB)], cwd=clone, env=environment, check=True)
    return time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="clone and install first")
    options, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, python, installing = ROOT, sys.executable, 0.0
        if options.install:
            source, python = folder / "clone", ".venv/bin/python"
            installing = install(source)
        environment = os.environ | {"LITTORAL_CACHE": str(folder / "cache"), "PYTHONPATH": str(source)}
        command = [python, "pipelines/coast.py", *arguments, "--run-id", "default", "--storage", str(folder / "runs")]
        before, started = os.times(), time.monotonic()
        code = subprocess.run(command, cwd=source, env=environment, stdout=subprocess.DEVNULL).returncode
        took, after = time.monotonic() - started, os.times()
        if code:
            print(f"the run ended with code {code}")
            return 1
        run_dir = folder / "runs" / "default"
        parts = parts_of(run_dir, took)
        print(parts)
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        print(f"{cpu:.0f} CPU s, of processes it waited for; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        same = json.loads(RECORD.read_text())["score_matrix"] == json.loads((run_dir / "score_matrix.json").read_text())
        print_bar("README's main job, s", took, "at most", BAR_S, parts)
        if options.install:
            both, why = took + installing, f"{installing:.0f} s installing; {parts}"
            print_bar("README's main job with installation, s", both, "at most", BAR_WITH_INSTALL_S, why)
        print_bar("its matrix is the recorded one", float(same or bool(arguments)), "at least", 1)
        print_bar("updates' wait for data, share", waiting(run_dir), "at most", BAR_WAIT)
    return 0


def parts_of(run_dir: Path, took: float) -> str:
    rows = Costs.read(run_dir).rows
    learning, scoring = sum(row.train_s for row in rows), sum(row.evaluate_s for row in rows)
    return f"learning {learning:.0f} s in float32, scoring {scoring:.0f}, all else {took - learning - scoring:.0f}"


def waiting(run_dir: Path) -> float:
    """Seconds of waiting for data, by seconds of updates, over all updates."""
    steps = [
        event["event"]
        for event in map(json.loads, (run_dir / EVENTS_FILE).read_text().splitlines())
        if event["kind"] == "StepDone"
    ]
    samples = json.loads((run_dir / "config.json").read_text())["training"]["global_batch_size"]
    return sum(step["data_wait_s"] for step in steps) / sum(samples / step["samples_per_s"] for step in steps)


if __name__ == "__main__":
    sys.exit(main())
