"""Rows scored beside training against rows scored in turn: seconds by the clock of the same run, and the same scores.

    python tests/benchmarks/scoring_beside.py [--updates 300] [--limit 48] [--repeats 1]

One worker and one scorer with a thread each. On a machine with two free cores the best that can come out is the longer
of learning and scoring over their sum, which is printed beside the ratio, and from which the start of one more process
takes its part. Two cores that are busy otherwise, or a run that is short, show no gain at all: what this measures is
that nothing waits without need, and not what two GPUs would save.
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
from tests.benchmarks.bars import print_bar  # noqa: E402

AT_MOST = 1.0  # scoring beside training is to cost no time where there is a core for it


def run_s(storage: Path, options: argparse.Namespace, beside: int) -> float:
    """Seconds of the command."""
    command = [sys.executable, "pipelines/coast.py", "pocket", "--method", "sequential-lora", "--run-id", "r"]
    command += ["--storage", str(storage), "--evaluation.beside", str(beside), "--cluster.threads-per-worker", "1"]
    command += ["--training.updates-per-task", str(options.updates), "--evaluation.limit", str(options.limit)]
    command += ["--evaluation.no-reuse", "--evaluation.batch-size", "4"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--limit", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    ratios = list[float]()
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.repeats):
            storages = [Path(folder) / f"{turn}-{name}" for name in ("turn", "beside")]
            in_turn, beside = (run_s(storage, options, number) for number, storage in enumerate(storages))
            rows = Costs.read(storages[0] / "r").rows
            learning, scoring = sum(row.train_s for row in rows), sum(row.evaluate_s for row in rows)
            best = (in_turn - min(learning, scoring)) / in_turn
            ratios.append(beside / in_turn)
            print(
                f"in turn {in_turn:.1f} s (learning {learning:.1f}, scoring {scoring:.1f}), beside {beside:.1f} s: "
                f"{beside / in_turn:.2f} of it, at best {best:.2f}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} "
                "cores",
                flush=True,
            )
            matrices = [json.loads((storage / "r" / "score_matrix.json").read_text())["rows"] for storage in storages]
            if matrices[0] != matrices[1]:
                raise SystemExit("scores differ")
    reason = "one more process starts and imports, on the cores that learning and scoring share"
    print_bar("run scored beside training / in turn", ratios, "at most", AT_MOST, reason)
    return 0


if __name__ == "__main__":
    sys.exit(main())
