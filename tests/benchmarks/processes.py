"""CPU time of a run by kind of process, against that of its worker.

    python tests/benchmarks/processes.py [--runs 1] [ARGUMENTS OF coast.py, by default pocket --method sequential-lora]

A run is its command and all processes below it. Their CPU times are read every 0.2 s, and the last value of a process
that has ended counts, so up to 0.2 s of each is missing. Aim: all other processes together take at most 1.2 times the
worker's time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.benchmarks.bars import print_bar  # noqa: E402

AIM = 1.2
KINDS = {  # the first one that is found in a process's command line
    "worker": r"^ray::(RayTrainWorker|LocalWorker)",
    "controller": r"TrainController",
    "driver": r"(pipelines/coast\.py|bin/littoral|pipelines\.littoral)",
    "gcs_server": r"gcs_server",
    "raylet": r"raylet/raylet ",
    "dashboard agent": r"dashboard/agent\.py|DashboardAgent",
    "runtime env agent": r"runtime_env/agent|RuntimeEnvAgent",
    "dashboard": r"dashboard/dashboard\.py|DashboardHead",
    "log monitor": r"log_monitor\.py",
    "autoscaling monitor": r"autoscaler/(_private|v2)/monitor\.py",
}


def kind_of(line: str) -> str:
    """The kind of a process by its command line; Ray's processes by the name of their actor or task."""
    for kind, pattern in KINDS.items():
        if re.search(pattern, line):
            return kind
    found = re.match(r"ray::(?:IDLE|([\w.]+))", line)
    return line.split()[0].rsplit("/", 1)[-1] if found is None and line else (found and found[1]) or "idle worker"


def cpu_by_kind(command: list[str], environment: dict[str, str]) -> tuple[dict[str, float], dict[str, int], float, int]:
    """CPU seconds and number of processes by kind, wall seconds, and the exit code of `command`."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    top, times, kinds = psutil.Process(process.pid), dict[tuple[int, float], float](), dict[tuple[int, float], str]()
    while process.poll() is None:
        for each in [top, *_below(top)]:
            try:
                key, cpu, line = (each.pid, each.create_time()), each.cpu_times(), " ".join(each.cmdline())
            except psutil.Error:
                continue
            times[key] = cpu.user + cpu.system
            kind = kind_of(line)
            # A worker process of Ray takes the name of its actor later, and is idle when that has ended.
            if kind not in ("idle worker", "") or key not in kinds:
                kinds[key] = kind
        time.sleep(0.2)
    seconds, number = defaultdict[str, float](float), defaultdict[str, int](int)
    for key, spent in times.items():
        seconds[kinds[key]] += spent
        number[kinds[key]] += 1
    return dict(seconds), dict(number), time.perf_counter() - began, process.returncode


def _below(top: psutil.Process) -> list[psutil.Process]:
    try:
        return top.children(recursive=True)
    except psutil.Error:
        return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="the figures as JSON as well")
    options, arguments = parser.parse_known_args()
    arguments = arguments or ["pocket", "--method", "sequential-lora"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for turn in range(options.runs):
        with tempfile.TemporaryDirectory() as storage:
            command = [sys.executable, "pipelines/coast.py", *arguments, "--storage", storage, "--run-id", f"r{turn}"]
            seconds, number, wall, code = cpu_by_kind(command, environment)
        if code:
            print(f"the run ended with code {code}")
            return 1
        total, worker = sum(seconds.values()), seconds.get("worker", 0.0)
        for kind in sorted(seconds, key=lambda kind: -seconds[kind]):
            print(f"{kind:40} {number[kind]:3} processes {seconds[kind]:6.1f} s")
        load = os.getloadavg()[0]
        print(f"{sum(number.values())} processes, {total:.1f} CPU s in {wall:.0f} s, load {load:.1f}")
        reason = "the command plans, opens MLflow and follows the run; like the worker, it imports torch"
        print_bar("CPU outside the worker / worker", (total - worker) / worker, "at most", AIM, reason)
        if options.json:
            print(json.dumps({"seconds": seconds, "number": number, "wall": wall}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
