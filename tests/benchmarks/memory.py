"""Memory of a whole job against the size of its dataset: the same stream at two sizes, one after the other.

    python tests/benchmarks/memory.py [--sizes nano small] [--backbone pocket|smol] [--limit-test N]

Sums the proportional set size (shared pages counted once) of the driver and every process below it: Ray's own, the
workers, the data tasks. Each job reads its whole dataset once. Aim: the peaks differ by at most 10 %. Linux only.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro

ROOT = Path(__file__).resolve().parents[2]
EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Which jobs to compare."""

    sizes: tuple[str, str] = ("nano", "small")
    backbone: str = "pocket"
    test_limit: int = 16
    """Test rows a task, the same for both: answering takes time, not memory."""


def main(options: Benchmark) -> None:
    for size in options.sizes:  # rows are generated, and the vision cache is filled, before anything is measured
        subprocess.run(command(options, size, Path("unused"), "--dry-run"), cwd=ROOT, check=True, capture_output=True)
    peaks = {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            peaks[size], seconds = measured(command(options, size, Path(folder)))
        print(f"{size:6} peak {peaks[size] / 2**20:8.0f} MiB over the whole job, {seconds:.0f} s")
    small, large = (peaks[size] for size in options.sizes)
    print(f"peak of {options.sizes[1]} / {options.sizes[0]}: {large / small:.2f}  (aim <= 1.10)")


def command(options: Benchmark, size: str, storage: Path, *more: str) -> list[str]:
    """One epoch over every task of the domain stream, sequential LoRA."""
    settings = {
        "--method": "sequential-lora",
        "--stream.size": size,
        "--stream.test-limit": str(options.test_limit),
        "--backbone.name": options.backbone,
        "--training.epochs": "1",
        "--training.updates-per-task": "None",
        "--run-id": f"memory-{size}",
        "--storage": str(storage),
    }
    flat = [part for pair in settings.items() for part in pair]
    return [sys.executable, "-m", "pipelines.coast", "pocket", *flat, "--tracking.no-enabled", *more]


def measured(job: list[str]) -> tuple[int, float]:
    """Peak bytes of the job's process tree, and how long it took."""
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(job, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, tree_bytes(process.pid))
        time.sleep(EVERY_S)
    assert process.returncode == 0, (process.stderr.read() if process.stderr else "")[-2000:]
    return peak, time.monotonic() - started


def tree_bytes(pid: int) -> int:
    """Proportional set size of a process and its descendants now."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
    return total


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=(__doc__ or "").split("\n\n")[0]))
