"""What one waits for beside the work itself: until a run's first update, and around the trials of a sweep.

    python tests/benchmarks/waiting.py [--repeats 2] [--no-sweep]

First update: seconds by the clock from the command to the first update of `pocket` without a zero-shot row, against
those of a process that imports torch, transformers and Ray, in turns. Sweep: 4 trials of `pocket` one after another,
seconds by the clock of the command against the sum of what its trials themselves call training and scoring
(costs.json).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from components.runs.costs import COSTS_FILE, Costs  # noqa: E402
from components.tracking.outbox import EVENTS_FILE  # noqa: E402
from tests.benchmarks.bars import print_bar  # noqa: E402

FIRST_UPDATE, SWEEP = 2.5, 1.15
FLOOR = "import torch, transformers, ray"
SPACE = "method=sequential_lora,moelora"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def floor_s() -> float:
    """Seconds of a process that only imports."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", FLOOR], env=environment(), check=True)
    return time.perf_counter() - began


def first_update_s(storage: Path, run_id: str) -> float:
    """Seconds until a new run has made its first update; the run is ended then."""
    command = [sys.executable, "pipelines/coast.py", "pocket", "--method", "sequential-lora", "--run-id", run_id]
    command += ["--evaluation.no-zero-shot", "--training.updates-per-task", "200", "--storage", str(storage)]
    began, events = time.perf_counter(), storage / run_id / EVENTS_FILE
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL) as process:
        while not (events.is_file() and '"StepDone"' in events.read_text()):
            if process.poll() is not None:
                raise SystemExit(f"the run ended with code {process.returncode} before its first update")
            time.sleep(0.02)
        took = time.perf_counter() - began
        process.send_signal(signal.SIGTERM)
    return took


def sweep_s(storage: Path) -> tuple[float, float, float]:
    """Seconds of a sweep by the clock, of its trials' own work, and of CPU time."""
    command = [sys.executable, "pipelines/sweep.py", "pocket", "--space", SPACE, "--seeds", "2", "--at-once", "1"]
    command += ["--sweep-id", "sweep", "--storage", str(storage)]
    began, before = time.perf_counter(), os.times()
    code = subprocess.run(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL).returncode
    took, after = time.perf_counter() - began, os.times()
    if code:
        raise SystemExit(f"the sweep ended with code {code}")
    rows = [row for path in storage.glob(f"sweep/*/{COSTS_FILE}") for row in Costs.read(path.parent).rows]
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return took, sum(row.train_s + row.evaluate_s for row in rows), cpu


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--no-sweep", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder) / "storage"
        first_update_s(storage, "fills-caches")
        ratios = list[float]()
        for turn in range(options.repeats):
            floor, took = floor_s(), first_update_s(storage, f"first-{turn}")
            ratios.append(took / floor)
            print(f"imports {floor:.1f} s, first update {took:.1f} s; load {os.getloadavg()[0]:.1f}", flush=True)
        reason = "the command plans, Ray's servers start, then the worker, which imports what the command has"
        print_bar("first update / imports", ratios, "at most", FIRST_UPDATE, reason)
        if not options.no_sweep:
            took, work, cpu = sweep_s(Path(folder) / "sweep")
            print(f"sweep of 4 trials {took:.1f} s, their own work {work:.1f} s; CPU {cpu:.1f} s, of ended processes")
            reason = "command, Ray, trial and worker start in turn until the first trial learns; its work is short"
            print_bar("sweep / its trials' work", took / work, "at most", SWEEP, reason)
    return 0


if __name__ == "__main__":
    sys.exit(main())
