"""How long a command takes over a long stream before anything is learned, by part; nothing is trained.

    python tests/benchmarks/many_rows.py [--rows 1000000] [--backbone pocket] [--keep DIR]

A stream of two tasks is generated, whose rows share a few pictures and have words of their own. Fresh processes plan
it as `coast --dry-run` does and make the datasets, for 250 updates a task and for every row once; first with nothing
in the caches, then again. Times are CPU seconds of that process, imports left out. Bar: 20 s for a million rows.
"""

from __future__ import annotations

import io
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import tyro
from PIL import Image

from components.data.prepared import write_stream_json
from components.data.rows import Row, Turn, write_split
from tests.benchmarks.bars import print_bar

ROOT = Path(__file__).resolve().parents[2]
BAR_S = 20.0  # for a million rows
WORDS = ("which", "bird", "left", "of", "the", "red", "tea", "shop", "and", "how", "many", "wheels", "chart")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """How long the stream is."""

    rows: int = 200_000
    """Training rows of both tasks together; 1,000,000 is what the bar is about."""
    backbone: str = "pocket"
    """The model whose tokens are counted."""
    only_budget: bool = False
    """Leave out the start over every row."""
    keep: Path | None = None
    """Where the stream is kept for the next time; otherwise it is deleted."""


def main(options: Benchmark) -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)) / f"rows-{options.rows}"
        if not (folder / "stream.json").is_file():
            generate(folder, options.rows)
        for updates, caches in product((250,) if options.only_budget else (250, None), ("empty", "filled")):
            what = "every row" if updates is None else f"{updates} updates a task"
            took = measured(folder, Path(temporary) / what, options.backbone, updates)
            show(f"{options.rows:,} rows, {what}, caches {caches}", options, took)


def generate(folder: Path, rows: int) -> None:
    for task in ("one", "two"):
        write_split(made(task, "train", rows // 2), folder / task / "train", task=task, split="train")
        write_split(made(task, "test", 200), folder / task / "test", task=task, split="test")
    write_stream_json(folder, "many-rows", {"one": 4, "two": 4})


def made(task: str, split: str, count: int) -> Iterator[Row]:
    pictures = [picture(number) for number in range(8)]
    draw = random.Random(f"{task} {split}")
    for number in range(count):
        words = draw.choices(WORDS, k=draw.randint(6, 20))
        yield Row(
            sample_id=f"{task}-{split}-{number}",
            task=task,
            split=split,
            turns=(
                Turn(speaker="human", text=f"<image>\n{' '.join(words)} {number}?"),
                Turn(speaker="gpt", text=words[0]),
            ),
            answers=(words[0],),
            metric="exact",
            source="generated",
            image=pictures[number % len(pictures)],
            width=32,
            height=32,
        )


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (number * 30, 255 - number * 30, 90)).save(file, "PNG")
    return file.getvalue()


MEASURED = """
import json, resource, sys, time
from dataclasses import replace
from pathlib import Path
from components.training.config import RunConfig
from components.data.stream_config import StreamConfig
from pipelines.presets import PRESETS
from components.training.plan import plan_stream
from components.training.needs import needs_of
from components.training.space import space_of
from components.training.plan_facts import plan_facts
import components.training.driver as driver, components.training.streaming as streaming
import components.models.encoding, components.training.measuring as measuring, components.data.streams as streams
import components.training.plan as planning

took = {}
def timed(name, call):
    start = time.process_time()
    value = call()
    took[name] = took.get(name, 0.0) + time.process_time() - start
    return value

def watch(module, name, label):
    inner = getattr(module, name)
    setattr(module, name, lambda *a, **k: timed(label, lambda: inner(*a, **k)))

config = PRESETS["pocket"]()
config = replace(config, run_id="many", storage=Path(sys.argv[2]), stream=StreamConfig(name=sys.argv[1]),
    backbone=replace(config.backbone, name=sys.argv[3]),
    training=replace(config.training, epochs=1, updates_per_task=json.loads(sys.argv[4])))
measuring.encoder_for(config.backbone).pad_id  # the model's files are read
streaming._stream = lambda windows, loader: streaming.stretches_of(windows)  # all of it but Ray's part
watch(planning, "opened", "  of it opening and verifying")
watch(planning, "fit_to_backbone", "  of it counting tokens")
plan = timed("plan", lambda: plan_stream(config))
needs = timed("needs", lambda: needs_of(plan))
timed("facts", lambda: plan_facts(plan, needs))
timed("rows reached", lambda: driver.rows_reached(plan))
timed("datasets", lambda: driver.build_datasets(plan, None))
took["in all"] = sum(value for name, value in took.items() if not name.startswith(" "))
took["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print("took", json.dumps(took))
"""


def measured(folder: Path, caches: Path, backbone: str, updates: int | None) -> dict[str, float]:
    """CPU seconds by part, and the peak resident set in MiB, of a fresh process."""
    command = [sys.executable, "-c", MEASURED, str(folder), str(caches / "runs"), backbone, json.dumps(updates)]
    # The model's own files are not what is measured; only what is counted of the rows is forgotten.
    environment = {**os.environ, "LITTORAL_CACHE": str(caches / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("took "))
    return json.loads(line.removeprefix("took "))


def show(what: str, options: Benchmark, took: dict[str, float]) -> None:
    print(what)
    for name, value in took.items():
        print(f"  {name:30} {value:8.2f}")
    reason = "counting the tokens of every row takes twice the bar; a budget makes it proportional to the rows reached"
    print_bar(f"start over {what}, CPU s", took["in all"], "at most", BAR_S * options.rows / 1e6, reason)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=(__doc__ or "").split("\n\n")[0]))
