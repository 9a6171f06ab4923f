"""Every bar with its figure, both sides of each measured in one run: the scripts beside this one, one after another.

    python tests/benchmarks/run.py [--only growth reuse] [--record FILE]   the bars that were set for speed
    python tests/benchmarks/run.py --more [--record FILE]                  those that parts of Littoral set themselves

On two quiet cores the first takes less than 30 minutes, with an installation of its own, the second about 15. Each
script also runs alone, longer and with other options; what they print above their bars is kept in the folder that
`--logs` names. Exit code 1 when a script fails, not when a bar is missed: the reason stands beside that bar, and
the longer story in RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.benchmarks.bars import UNMEASURED, Bar  # noqa: E402

SET: dict[str, list[str]] = {
    "starting": ["--repeats", "3"],
    "processes": [],
    "waiting": ["--repeats", "1"],
    "growth": ["--rounds", "2"],
    "answers": ["--repeats", "2", "--prompts", "16"],
    "many_rows": ["--rows", "1000000", "--only-budget"],
    "preparing": [],
    "many_tasks": ["--tasks", "24"],
    "reuse": ["--tasks", "4", "8", "40"],
    "reuse --field": ["--backbone", "smol", "--tasks", "4"],
    "written_bytes": [],
    "default_run --install": [],
}
MORE: dict[str, list[str]] = {
    "options": ["--repeats", "2", "--rows", "12"],
    "refilling": ["--rows", "24"],
    "serving": ["--seconds", "10"],
    "scoring_beside": [],
    "uploading": ["--updates", "60", "--rounds", "1"],
    "submitting": ["--repeats", "2"],  # nothing else of Ray's may run beside it
}
SCRIPTS = SET | MORE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--only", nargs="+", choices=SCRIPTS, help="these scripts")
    chosen.add_argument("--more", action="store_true", help="the bars that parts of Littoral set themselves")
    parser.add_argument("--logs", type=Path, help="a folder for what the scripts print; by default a temporary one")
    parser.add_argument("--record", type=Path, help="write the bars here as JSON, where others may be already")
    options = parser.parse_args()
    logs = options.logs or Path(tempfile.mkdtemp(prefix="littoral-benchmarks-"))
    logs.mkdir(parents=True, exist_ok=True)
    began, bars, failed = time.monotonic(), dict[str, list[Bar]](), list[str]()
    for name in options.only or (MORE if options.more else SET):
        started = time.monotonic()
        code, bars[name] = run(name, logs / f"{name.replace(' ', '')}.txt")
        print(f"-- {name}: {time.monotonic() - started:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        if code:
            failed.append(name)
            print(f"   ended with code {code}; see {logs}")
    print(table(bars))
    held = [each.holds for of in bars.values() for each in of]
    print(f"\n{sum(held)} of {len(held)} bars hold, {len(held) - sum(held)} are missed", end="")
    print(f"; not all were printed by {', '.join(failed)}" if failed else "")
    print(f"{time.monotonic() - began:.0f} s in all; what the scripts printed is in {logs}")
    if options.record:
        found = {name: [asdict(each) | {"holds": each.holds} for each in of] for name, of in bars.items()}
        if options.record.is_file():
            found = json.loads(options.record.read_text())["bars"] | found
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps({"date": date.today().isoformat(), "bars": found}, indent=2) + "\n")
    return 1 if failed else 0


def run(name: str, log: Path) -> tuple[int, list[Bar]]:
    """The script's exit code and its bars; all it prints goes into `log`, and its bars to the terminal as well."""
    script, *options = name.split()
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / f"{script}.py"), *options, *SCRIPTS[name]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    bars = list[Bar]()
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if bar := Bar.read(line):
                bars.append(bar)
                print(f"   {bar}", flush=True)
            elif line.startswith(UNMEASURED):
                print(f"   {line.strip()}", flush=True)
    return process.returncode, bars


def table(bars: dict[str, list[Bar]]) -> str:
    """All bars as Markdown, and the reasons of those that are missed."""
    lines = ["", "| script | bar | figure | limit | |", "| --- | --- | ---: | --- | --- |"]
    lines += [
        f"| {name} | {each.name} | {each.value:.3g}{each.spread} | {each.limit} {each.bar:g} | "
        f"{'holds' if each.holds else 'missed'} |"
        for name, of in bars.items()
        for each in of
    ]
    missed = [each for of in bars.values() for each in of if not each.holds]
    return "\n".join(
        [*lines, *(["", "Missed:"] if missed else []), *(f"- {each.name}: {each.reason}" for each in missed)]
    )


if __name__ == "__main__":
    sys.exit(main())
