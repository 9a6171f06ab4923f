"""CPU time of commands that train nothing: they only read JSON, or print help.

    python tests/benchmarks/starting.py [--repeats 5]

The commands take turns; each time is user and system time of one process and its children, the median of the repeats.
Aim: at most 0.7 s each. The import of torch, transformers and Ray, which a run begins with, stands beside them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.benchmarks.bars import print_bar  # noqa: E402

AIM_S = 0.7
RECORDS = [str(path) for path in sorted((ROOT / "docs/results/mini-coin").glob("*-s0.json"))]
COMMANDS = {
    "littoral --help": ["-m", "pipelines.littoral", "--help"],
    "littoral --version": ["-m", "pipelines.littoral", "--version"],
    "littoral list": ["-m", "pipelines.littoral", "list"],
    "littoral status": ["-m", "pipelines.littoral", "status"],
    f"littoral report ({len(RECORDS)} records)": ["-m", "pipelines.littoral", "report", *RECORDS],
    "littoral methods --help": ["-m", "pipelines.littoral", "methods", "--help"],
    "littoral coast --help": ["-m", "pipelines.littoral", "coast", "--help"],
    "littoral coast --print-config": ["-m", "pipelines.littoral", "coast", "--print-config"],
}
FLOOR = ["-c", "import torch, transformers, ray"]


def cpu_s(arguments: list[str], folder: Path) -> float:
    """CPU seconds of `python ARGUMENTS` in an empty folder; raises `CalledProcessError` where it fails."""
    before = os.times()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "runs").mkdir()
        for _ in range(repeats):
            for name, arguments in COMMANDS.items():
                times[name].append(cpu_s(arguments, Path(folder)))
        floor = cpu_s(FLOOR, Path(folder))
    for name, found in times.items():
        imports = "most of it is imports: our own modules, tyro with pydantic, and numpy where matrices are read"
        print_bar(f"{name}, CPU s", found, "at most", AIM_S, imports)
    print(f"{'import torch, transformers, ray':34} {floor:5.2f} s, once")
    return 0


if __name__ == "__main__":
    sys.exit(main())
