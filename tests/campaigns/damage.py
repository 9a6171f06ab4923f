"""The damage campaign: every reader gets damaged files and must answer with a value or one sentence.

    python tests/campaigns/damage.py --seed 0 --cases 10000
    python tests/campaigns/damage.py --seed 0 --only record --case 17     one case again, with its traceback

Cases run in a child process, so that a crash, a hang (`SECONDS` a case) and memory (`MIB` a case above what the process
had) are seen and counted. Exit code 1 with the cases to repeat when anything else happens than a value or a sentence.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import IO, Any, cast

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "unit"), str(HERE.parent.parent)]

from damaged_inputs import Input, inputs  # noqa: E402
from mutations import mutated  # noqa: E402

from components.core.errors import LittoralError  # noqa: E402
from components.data.prepared import open_prepared  # noqa: E402
from components.data.problems import ItemError  # noqa: E402

SECONDS = 20.0
MIB = 256
OUTCOMES = ("refused", "whole", "foreign", "bad sentence", "hang", "crash", "partial", "memory")
GOOD = ("refused", "whole")
_TEXT = (".json", ".jsonl", ".toml")


def run_case(one: Input, seed: int, number: int, scratch: Path, *, show: bool = False) -> dict[str, Any]:
    """Damage one file of a copy of the input and read it; what happened."""
    draw = random.Random(f"{seed} {one.name} {number}")
    copy = scratch / "case"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(one.folder, copy)
    victim = draw.choice(one.files()).relative_to(one.folder)
    content = (copy / victim).read_bytes()
    (copy / victim).write_bytes(mutated(content, draw, is_json=victim.suffix in _TEXT))
    before = {path.relative_to(copy) for path in copy.rglob("*")}
    start = _reset_peak()
    outcome, said = "whole", ""
    try:
        one.read(copy)
    except (LittoralError, ItemError) as error:
        outcome, said = "refused", str(error)
        if not said.strip() or not said.isprintable() or len(said) > 2500:
            outcome = "bad sentence"
        elif isinstance(error, LittoralError) and str(copy) not in said and victim.name not in said:
            outcome = "bad sentence"  # which file?
    except BaseException as error:  # noqa: BLE001  (what a reader lets through is looked for)
        outcome, said = "foreign", f"{type(error).__name__}: {error}"
        if show:
            traceback.print_exc()
    peak = _peak() - start
    if outcome in GOOD and _is_partial(one, copy, before):
        outcome = "partial"
    if outcome in GOOD and peak > MIB:
        outcome, said = "memory", f"{peak} MiB"
    return {"outcome": outcome, "said": said[:300], "peak": peak, "file": str(victim)}


def _is_partial(one: Input, copy: Path, before: set[Path]) -> bool:
    new = {path.relative_to(copy) for path in copy.rglob("*")} - before
    if one.writes and (copy / one.writes).is_dir():
        try:
            open_prepared(copy / one.writes)
        except LittoralError:
            return True
        new = {path for path in new if path.parts[0] != one.writes}
    return any(not path.name.endswith(".report.json") for path in new)


def _reset_peak() -> int:
    """MiB that the process holds now; its peak is counted anew from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def work(seed: int, first: int, total: int, only: str | None, *, show: bool = False) -> None:
    """The child: cases from `first` on, a line before and after each."""
    limit = 8 << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as folder:
        made, scratch = Path(folder, "inputs"), Path(folder, "scratch")
        made.mkdir(), scratch.mkdir()
        found = [one for one in inputs(made) if only in (None, one.name)]
        if not found:
            raise SystemExit(f"no reader is called {only!r}")
        for case in range(first, total):
            one, number = found[case % len(found)], case // len(found)
            print(json.dumps({"begin": case, "reader": one.name, "number": number}), flush=True)
            print(json.dumps({"end": case, **run_case(one, seed, number, scratch, show=show)}), flush=True)


def campaign(
    seed: int, cases: int, only: str | None = None
) -> tuple[dict[str, Counter[str]], dict[str, int], list[str]]:
    """Outcomes by reader, the highest peak in MiB by reader, and a line for each failure."""
    table: dict[str, Counter[str]] = {}
    peaks: dict[str, int] = {}
    failures: list[str] = []
    following = 0
    while following < cases:
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            __file__,
            "--work",
            "--seed",
            str(seed),
            "--first",
            str(following),
        ]
        command += ["--cases", str(cases), *(["--only", only] if only else [])]
        # What it warns of goes to a file: a pipe that nobody reads fills up, and the child waits for ever.
        with tempfile.TemporaryFile("w+") as warnings:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=warnings, text=True, bufsize=1)
            stopped, said = _follow(child, warnings, table, peaks, failures, seed)
        if stopped is None and child.returncode == 0:
            break
        if stopped is None:
            raise SystemExit(f"the child did not begin: {said}")
        following = stopped + 1
    return table, peaks, failures


def _follow(
    child: subprocess.Popen[str],
    warnings: IO[str],
    table: dict[str, Counter[str]],
    peaks: dict[str, int],
    failures: list[str],
    seed: int,
) -> tuple[int | None, str]:
    """Take a child's lines until it ends; the case in which it died or hung, if it did."""
    running: dict[str, Any] | None = None
    out = cast(IO[str], child.stdout)
    while True:
        ready, _, _ = select.select([out], [], [], SECONDS + (60.0 if running is None else 0.0))
        line = out.readline() if ready else ""
        if not line:
            break
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        if "begin" in entry:
            running = entry
        elif running is not None and "end" in entry:
            _count(table, peaks, failures, running, entry, seed)
            running = None
    hung = child.poll() is None and running is not None and not ready
    if hung:
        child.kill()
    child.communicate()
    warnings.seek(0)
    said = warnings.read()
    if running is None:
        return None, said[-600:]
    outcome = "hang" if hung else "crash"
    ended = f"exit code {child.returncode}: {said.strip()[-2000:]}".replace("\n", " | ")
    last = {"outcome": outcome, "said": ended, "peak": 0, "file": ""}
    _count(table, peaks, failures, running, last, seed)
    return int(running["begin"]), said


def _count(
    table: dict[str, Counter[str]],
    peaks: dict[str, int],
    failures: list[str],
    running: dict[str, Any],
    entry: dict[str, Any],
    seed: int,
) -> None:
    reader, outcome = str(running["reader"]), str(entry["outcome"])
    table.setdefault(reader, Counter())[outcome] += 1
    peaks[reader] = max(peaks.get(reader, 0), int(entry["peak"]))
    if outcome not in GOOD:
        again = f"--seed {seed} --only {reader!r} --case {running['number']}"
        failures.append(f"{outcome}: {again}: {entry['file']}: {entry['said']}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--only", help="one reader, by its name in the table")
    parser.add_argument("--case", type=int, help="with --only: this case alone, in this process")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case is not None:
        work(given.seed, given.case, given.case + 1, given.only, show=True)
        return 0
    if given.work:
        work(given.seed, given.first, given.cases, given.only)
        return 0
    table, peaks, failures = campaign(given.seed, given.cases, given.only)
    print(f"{'reader':24}{'cases':>7}" + "".join(f"{name:>13}" for name in OUTCOMES) + f"{'peak MiB':>10}")
    for reader, found in table.items():
        print(
            f"{reader:24}{found.total():7}" + "".join(f"{found[name]:13}" for name in OUTCOMES) + f"{peaks[reader]:10}"
        )
    print(f"{sum(found.total() for found in table.values())} cases, {len(failures)} failures")
    for failure in failures:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
