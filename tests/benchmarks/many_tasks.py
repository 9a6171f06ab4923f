"""What a task costs beside its answers in a stream of many small ones: CPU seconds of all processes of a real run.

    python tests/benchmarks/many_tasks.py [--tasks 32]

The stream is `tests/campaigns/long_stream.py`'s: two updates a task, one test row of each. After task T a row of T
answers is scored, so the CPU time of a task is a line in T: its slope is an answer, and its height at T = 0 all the
rest, which is two updates, the switch, checkpoints, the row and tracking. Bars: that rest is at most 1.5 s, and in the
second half of the stream at most 1.25 times that of the first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "campaigns"), str(ROOT)]

from long_stream import RUN, command, write_stream  # noqa: E402

from components.tracking.outbox import EVENTS_FILE  # noqa: E402
from tests.benchmarks.bars import print_bar  # noqa: E402

WARM, EVERY_S, BAR_S, BAR_FLAT = 4, 0.25, 1.5, 1.25


def cpu_s(top: psutil.Process, known: dict[tuple[int, float], float]) -> float:
    """CPU seconds of a process and all that were ever seen below it; `known` keeps those of the ended ones."""
    try:
        alive = [top, *top.children(recursive=True)]
    except psutil.Error:
        return sum(known.values())
    for process in alive:
        try:
            spent = process.cpu_times()
            known[process.pid, process.create_time()] = spent.user + spent.system
        except psutil.Error:
            continue
    return sum(known.values())


def measured(tasks: int, folder: Path) -> dict[int, float]:
    """CPU seconds of the run so far when each row was there, by number of learned tasks."""
    process = subprocess.Popen(
        command(write_stream(folder / "data", tasks), folder / "runs"), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    top, known, samples = psutil.Process(process.pid), dict[tuple[int, float], float](), list[tuple[float, float]]()
    while process.poll() is None:
        samples.append((time.time(), cpu_s(top, known)))
        time.sleep(EVERY_S)
    if process.returncode:
        sys.exit(f"the run ended with code {process.returncode}")
    events = (json.loads(line) for line in (folder / "runs" / RUN / EVENTS_FILE).read_text().splitlines())
    scored = {each["event"]["tasks_learned"]: each["at_ms"] / 1000 for each in events if each["kind"] == "RowScored"}
    at, spent = np.array(samples).T
    return {learned: float(np.interp(when, at, spent)) for learned, when in scored.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=32)
    tasks = parser.parse_args().tasks
    with tempfile.TemporaryDirectory() as folder:
        spent = measured(tasks, Path(folder))
    by_task = {last: spent[last] - spent[first] for first, last in pairwise(range(WARM, tasks + 1))}
    slope, height = np.polyfit(list(by_task), list(by_task.values()), 1)
    rest = {task: each - slope * task for task, each in by_task.items()}
    halves = [[each for task, each in rest.items() if (2 * task > WARM + tasks) == late] for late in (False, True)]
    first, second = map(statistics.median, halves)
    print(f"{tasks} tasks, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {slope * 1e3:.0f} ms an answer")
    print_bar("a task beside its answers, CPU s", float(height), "at most", BAR_S)
    print_bar("the same in the second half / in the first", second / first, "at most", BAR_FLAT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
