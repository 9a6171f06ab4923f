"""The long stream: many small tasks in one run of the real command, and what grows with their number.

    python tests/campaigns/long_stream.py                    200 tasks, about 20 minutes of two quiet cores
    python tests/campaigns/long_stream.py --tasks 12         a short one
    python tests/campaigns/long_stream.py --read FOLDER      judge again what `--folder FOLDER` kept

Every few seconds it notes the memory (USS) and the open files of all processes of the run. Exit code 1 when the run's
is not 0; when a process has grown by more than `GROWTH_MIB` or `GROWTH_FILES` after the first `WARM` tasks, or there
are `GROWTH_COUNT` more of a kind; when a task takes `SLOWER` times as long as after those, scoring apart; or when the
MLflow run is not what the files of the run say.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from io import BytesIO
from pathlib import Path

import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from recorded_whole import differences  # noqa: E402

from components.runs.costs import Costs  # noqa: E402
from components.tracking.config import DATABASE, sqlite_uri  # noqa: E402
from components.tracking.outbox import EVENTS_FILE  # noqa: E402

RUN, UPDATES, TRAIN_ROWS = "long", 2, 4
WARM = 10  # tasks after which nothing may grow
GROWTH_MIB, GROWTH_FILES, GROWTH_COUNT, SLOWER = 96, 32, 4, 1.5  # a data process keeps up to 32 shards open


@dataclass(frozen=True)
class Sample:
    """How many processes of one kind there are at one moment, and what the largest of them holds."""

    at_s: float
    kind: str
    count: int
    uss_mib: float
    files: int


def write_stream(folder: Path, tasks: int) -> Path:
    """A stream of tasks that differ in their questions, their words and the colour of their pictures."""
    (folder / "images").mkdir(parents=True)
    described = ['name = "long"']
    for number in range(tasks):
        name = f"task-{number + 1:03d}"
        buffer = BytesIO()
        Image.new("RGB", (32, 32), (number % 256, 37 * number % 256, 91 * number % 256)).save(buffer, "PNG")
        (folder / "images" / f"{name}.png").write_bytes(buffer.getvalue())
        for part, count in (("train", TRAIN_ROWS), ("test", 1)):
            rows = [
                {
                    "id": f"{name}-{part}-{row}",
                    "image": f"{name}.png",
                    "conversations": [
                        {"from": "human", "value": f"<image>\nWord {number} of {part} row {row}?"},
                        {"from": "gpt", "value": f"w{number}"},
                    ],
                }
                for row in range(count)
            ]
            (folder / f"{name}-{part}.json").write_text(json.dumps(rows))
        paths = "\n".join(f'{part} = "{folder / f"{name}-{part}.json"}"' for part in ("train", "test"))
        images = f'images = "{folder / "images"}"\nmetric = "exact"\nmax_new_tokens = 4'
        described.append(f'[[task]]\nname = "{name}"\n{paths}\n{images}')
    path = folder / "long.toml"
    path.write_text("\n\n".join(described) + "\n")
    return path


def command(stream: Path, storage: Path) -> list[str]:
    """The run: two updates a task, one test row of each, everything else as users have it."""
    options = {
        "--method": "sequential-lora",
        "--stream.name": str(stream),
        "--run-id": RUN,
        "--storage": str(storage),
        "--training.updates-per-task": str(UPDATES),
        "--training.global-batch-size": str(TRAIN_ROWS),
        "--evaluation.limit": "1",
    }
    return [sys.executable, "pipelines/coast.py", "pocket", *(word for pair in options.items() for word in pair)]


def samples_of(driver: psutil.Process) -> Iterator[Sample]:
    """One sample for each kind of process, now."""
    held: dict[str, list[tuple[float, int]]] = defaultdict(list)
    at_s = time.time()
    with suppress(psutil.Error):
        for process in [driver, *driver.children(recursive=True)]:
            with suppress(psutil.Error):
                found = process.memory_full_info().uss / 2**20, process.num_fds()
                held[_kind(process)].append(found)
    for kind, found in held.items():
        yield Sample(at_s, kind, len(found), max(uss for uss, _ in found), max(files for _, files in found))


def _kind(process: psutil.Process) -> str:
    """Processes that run Ray's tasks change their titles with the task: those of Ray Data are one kind."""
    title = " ".join(process.cmdline()).strip("\0 ")  # padded to the length of an older title
    if title.startswith("ray::"):
        name = title.removeprefix("ray::").partition(".")[0].partition("(")[0]
        return "data" if name in ("IDLE", "MapBatches", "MapWorker", "ReadBatches", "compute_features") else name
    if title.startswith(sys.executable) and "coast.py" in title:
        return "driver"
    scripts = (Path(word).name for word in process.cmdline() if word.endswith(".py"))
    return next(scripts, process.name())


def run(folder: Path, tasks: int, every_s: float) -> int:
    """Run the stream in `folder`, and keep the samples beside it; the exit code. SIGTERM ends the run as well."""
    stream = write_stream(folder / "data", tasks)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with (folder / "output.txt").open("w") as output, (folder / "samples.jsonl").open("w") as samples:
        process = subprocess.Popen(command(stream, folder / "runs"), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                for sample in samples_of(psutil.Process(process.pid)):
                    samples.write(json.dumps(asdict(sample)) + "\n")
                samples.flush()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=every_s)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    (folder / "exit_code").write_text(str(process.returncode))
    return process.returncode


def judge(folder: Path) -> tuple[dict[str, object], list[str]]:
    """What was seen, and what is wrong with it."""
    run_dir, code = folder / "runs" / RUN, int((folder / "exit_code").read_text())
    if code:
        return {"exit code": code}, [f"exit code {code}: {(folder / 'output.txt').read_text()[-1000:]}"]
    events = [json.loads(line) for line in (run_dir / EVENTS_FILE).read_text().splitlines()]
    scored = {e["event"]["tasks_learned"]: e["at_ms"] / 1000 for e in events if e["kind"] == "RowScored"}
    tasks = max(scored)
    at = [task for task in (WARM, 50, 100, 150, 200) if task <= tasks]
    at = at if at[-1:] == [tasks] else [*at, tasks]
    memory, files, counts = (held_at(folder, scored, at, what) for what in ("uss_mib", "files", "count"))
    seconds = seconds_by_task(run_dir, scored)
    wrong = [
        f"{kind} grew from {found[at[0]]:.0f} to {found[at[-1]]:.0f} {unit}"
        for held, most, unit in (
            (memory, GROWTH_MIB, "MiB"),
            (files, GROWTH_FILES, "open files"),
            (counts, GROWTH_COUNT, "processes"),
        )
        for kind, found in held.items()
        if found.get(at[-1], 0) - found.get(at[0], 0) > most and at[0] in found
    ]
    last = [seconds[task]["apart"] for task in range(max(WARM, tasks - WARM) + 1, tasks + 1)]
    first = [seconds[task]["apart"] for task in range(WARM + 1, min(2 * WARM, tasks) + 1)]
    if statistics.median(last) > SLOWER * statistics.median(first) + 0.5:
        wrong.append(
            f"a task takes {statistics.median(last):.2f} s at the end, {statistics.median(first):.2f} s before"
        )
    wrong += [f"MLflow: {each}" for each in differences(run_dir, sqlite_uri(run_dir.parent / DATABASE))]
    figures: dict[str, object] = {
        "date": date.today().isoformat(),
        "tasks": tasks,
        "exit code": code,
        "MiB by process and task": memory,
        "open files by process and task": files,
        "processes by kind and task": counts,
        "seconds by task": {task: seconds[task] for task in at},
        "seconds in all": round(scored[tasks] - scored[0], 1),
        "wrong": wrong,
    }
    return figures, wrong


def held_at(folder: Path, scored: Mapping[int, float], at: list[int], what: str) -> dict[str, dict[int, float]]:
    """One figure of each kind of process: the median over the five tasks up to each of `at`."""
    samples = [Sample(**json.loads(line)) for line in (folder / "samples.jsonl").read_text().splitlines()]
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for task in at:
        by_kind: dict[str, list[float]] = defaultdict(list)
        for each in samples:
            if scored[max(0, task - 5)] <= each.at_s <= scored[task]:
                by_kind[each.kind].append(getattr(each, what))
        for kind in sorted(by_kind):
            found[kind][task] = round(statistics.median(by_kind[kind]), 1)
    return dict(found)


def seconds_by_task(run_dir: Path, scored: Mapping[int, float]) -> dict[int, dict[str, float]]:
    """By task: learning, scoring, and all but scoring, which has checkpoints and what lies between."""
    costs = {row.tasks_learned: row for row in Costs.read(run_dir).rows}
    return {
        task: {
            "learning": round(costs[task].train_s, 2),
            "scoring": round(costs[task].evaluate_s, 2),
            "apart": round(scored[task] - scored[task - 1] - costs[task].evaluate_s, 2),
        }
        for task in scored
        if task
    }


def table(figures: Mapping[str, object]) -> str:
    """The figures as Markdown, without what was wrong."""
    lines = []
    for title in (
        "MiB by process and task",
        "open files by process and task",
        "processes by kind and task",
        "seconds by task",
    ):
        found = figures.get(title)
        if not isinstance(found, dict) or not found:
            continue
        by_row = found if title != "seconds by task" else _turned(found)
        columns = list(dict.fromkeys(key for cells in by_row.values() for key in cells))
        lines += ["", f"| {title} | {' | '.join(map(str, columns))} |", "| --- |" + " ---: |" * len(columns)]
        lines += [f"| {row} | {' | '.join(str(cells.get(c, '')) for c in columns)} |" for row, cells in by_row.items()]
    return "\n".join(lines)


def _turned(rows: Mapping[int, Mapping[str, float]]) -> dict[str, dict[int, float]]:
    names = dict.fromkeys(name for cells in rows.values() for name in cells)
    return {name: {task: cells[name] for task, cells in rows.items()} for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200, help=f"tasks of the stream, more than {WARM}")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--folder", type=Path, help="a new folder for the run, kept; otherwise a temporary one")
    parser.add_argument("--read", type=Path, help="judge a kept folder again")
    parser.add_argument("--record", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    if options.tasks <= WARM:
        parser.error(f"--tasks is {options.tasks}; nothing is compared below {WARM + 1}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.read or options.folder or Path(temporary) / "long"
        if options.read is None:
            folder.mkdir(parents=True)
            run(folder.resolve(), options.tasks, options.every)
        figures, wrong = judge(folder)
    print(table(figures))
    print({name: value for name, value in figures.items() if not isinstance(value, dict | list)})
    print("\n".join(f"WRONG: {each}" for each in wrong) or "nothing has grown, and MLflow has all of it")
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
