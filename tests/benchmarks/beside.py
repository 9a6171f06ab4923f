"""How long a run takes beside one busy process, and alone: the two take turns, so that both meet the same machine.

    python tests/benchmarks/beside.py [--rounds 2] [--own "--stream.order chartqa"]

Prints seconds of each round and the ratio of their medians; at most 2.5 is what a run beside other work may take.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHORT = "pocket --method sequential-lora --stream.order chartqa --tracking.no-enabled"
BUSY = [sys.executable, "-c", "while True: pass"]


def seconds(own: str, *, busy: bool) -> float:
    """One run to its end, in a storage of its own."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if busy:
            process = stack.enter_context(subprocess.Popen(BUSY))
            stack.callback(process.kill)
        command = [sys.executable, str(ROOT / "pipelines" / "coast.py"), *shlex.split(own)]
        start = time.monotonic()
        done = subprocess.run(
            [*command, "--run-id", "run", "--storage", folder], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode != 0:
            sys.exit(done.stderr)
        return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--own", default=SHORT, help="preset and options of the run")
    options = parser.parse_args()
    taken: dict[bool, list[float]] = {False: [], True: []}
    for number in range(options.rounds):
        for busy in (False, True):
            taken[busy].append(seconds(options.own, busy=busy))
            what = "beside one busy process" if busy else "alone"
            print(f"round {number + 1}, {what}: {taken[busy][-1]:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    alone, beside = (statistics.median(taken[busy]) for busy in (False, True))
    print(f"alone {alone:.1f} s, beside {beside:.1f} s, ratio {beside / alone:.2f} (median of {options.rounds})")


if __name__ == "__main__":
    main()
