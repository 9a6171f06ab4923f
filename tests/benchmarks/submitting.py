"""From a command to its first update: `clusters/submit.py` to a cluster that is there, against the command itself.

    python tests/benchmarks/submitting.py [--repeats 3]

Both take turns with the same small run on one machine; the first pair warms caches and is left out. The first update
begins when the first task does, which both print at once. A job's command comes later, by an upload and by the process
that Ray starts for it, and joins a Ray that the direct command has to start. Bar: at most 1.3 times the seconds by the
clock.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from local_cluster import LocalCluster  # noqa: E402

from tests.benchmarks.bars import print_bar  # noqa: E402

BAR = 1.3
RUN = ("pocket", "--stream.order", "chartqa", "--training.epochs", "1000", "--evaluation.no-zero-shot")


def seconds_to_first_update(run: subprocess.Popen[str], began: float) -> float:
    assert run.stdout is not None
    lines = []
    for line in run.stdout:
        lines.append(line)
        if line.startswith("Task 1/"):
            return time.monotonic() - began
    raise RuntimeError("".join(lines)[-3000:])


def direct(storage: Path, name: str, cluster: LocalCluster) -> float:
    began = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "pipelines/coast.py", *RUN, "--run-id", name, "--storage", str(storage)],
        cwd=ROOT,
        env={name: value for name, value in cluster.environment.items() if not name.startswith("RAY_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        return seconds_to_first_update(run, began)
    finally:
        run.terminate()
        run.communicate()


def submitted(storage: Path, name: str, cluster: LocalCluster) -> float:
    began = time.monotonic()
    run = cluster.submit(name, *RUN, "--storage", str(storage))
    try:
        return seconds_to_first_update(run, began)
    finally:
        cluster.job("stop", name)
        run.communicate()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    ratios = list[float]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cluster = LocalCluster(folder / "state")
        cluster("start")
        cluster.address = f"http://127.0.0.1:{cluster.dashboard}"
        try:
            for number in range(repeats + 1):
                alone = direct(folder / "runs", f"direct-{number}", cluster)
                as_job = submitted(folder / "runs", f"job-{number}", cluster)
                print(f"direct {alone:.1f} s, as a job {as_job:.1f} s{'' if number else ' (left out)'}", flush=True)
                if number:
                    ratios.append(as_job / alone)
        finally:
            cluster("stop")
    reason = "a joined cluster has Ray Train's controller and helpers, the direct command's only worker has none"
    print_bar("submission to first update, of the direct command's time", ratios, "at most", BAR, reason)
    return 0


if __name__ == "__main__":
    sys.exit(main())
