"""Speed and memory of preparing a user's own data, as ratios within one run.

    python tests/benchmarks/preparing.py [--rows 2000] [--text-rows 20000] [--workers 2]

- **speed**: a generated LLaVA list with one JPEG per row is imported by us, and written by a bare loop that reads the
  same list, opens and decodes each picture with Pillow and writes the same schema, compression and file sizes with
  pyarrow. Contestants take turns in every repeat; a ratio is the median over repeats. CPU time is that of the process,
  so a busy machine disturbs it less than the wall clock. Bars: as many rows per CPU second, and on two threads
  1.8 times as many per second.
- **memory**: the peak resident set of a fresh process that imports a list of a quarter of the rows, and of all: with
  pictures, and of text alone (`--text-rows 1000000` for a long one). Aim: they differ by at most 10 %. Linux only.
"""

from __future__ import annotations

import io
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from PIL import Image

from components.data.formats.parallel_map import Threads
from components.data.importing import import_stream, read_stream_file
from components.data.rows import ROW_GROUP_ROWS, SCHEMA, SHARD_ROWS
from tests.benchmarks.bars import print_bar

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 64  # different ones; every row has its own file, a hard link to one of them
STREAM = """name = "generated"
[[task]]
name = "made"
train = "train.json"
test = "test.json"
images = "images"
metric = "exact"
max_new_tokens = 16
"""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """How much to prepare."""

    rows: int = 2000
    """Rows with a picture; 100,000 shows what a real list does."""
    text_rows: int = 20_000
    """Rows without a picture."""
    side: int = 336
    """Pixels of a picture's side; LLaVA-1.5 looks at 336."""
    workers: int = 2
    """Threads of the contestant that has several."""
    repeats: int = 3


def main(options: Benchmark) -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        pictures = generated(Path(folder) / "pictures", options.rows, options.side)
        compare_speed(options, pictures)
        few = generated(Path(folder) / "few", options.rows // 4, options.side)
        compare_memory("pictures", few, pictures)
        many = generated(Path(folder) / "texts", options.text_rows, None)
        compare_memory("text", generated(Path(folder) / "fewer", options.text_rows // 4, None), many)


def generated(folder: Path, rows: int, side: int | None) -> Path:
    """A stream file beside a list of `rows` items, with pictures of `side` pixels or without any."""
    images = folder / "images"
    images.mkdir(parents=True)
    for number in range(PICTURES if side else 0):
        (images / f"original-{number}.jpg").write_bytes(photograph(number, side or 0))
    write_list(folder / "train.json", (item(images, number, pictured=bool(side)) for number in range(rows)))
    write_list(folder / "test.json", (item(images, rows + number, pictured=bool(side)) for number in range(4)))
    (folder / "stream.toml").write_text(STREAM)
    return folder / "stream.toml"


def photograph(seed: int, side: int) -> bytes:
    """A smooth random picture with some noise, about as large as a photograph as JPEG."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((side, side))
    noisy = np.asarray(coarse, dtype=np.int16) + draw.integers(-8, 9, (side, side, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def item(images: Path, number: int, *, pictured: bool) -> dict[str, object]:
    words = random.Random(number).choices(("tea", "red", "left", "shop", "count", "is", "the", "what"), k=30)
    turns = [{"from": "human", "value": f"{' '.join(words)}?"}, {"from": "gpt", "value": words[0]}]
    if not pictured:
        return {"id": f"row-{number}", "conversations": turns}
    name = f"{number:07d}.jpg"
    os.link(images / f"original-{number % PICTURES}.jpg", images / name)
    return {"id": f"row-{number}", "image": name, "conversations": turns}


def write_list(path: Path, items: Iterable[dict[str, object]]) -> None:
    with path.open("w") as file:
        file.write("[")
        for number, one in enumerate(items):
            file.write((",\n" if number else "") + json.dumps(one))
        file.write("]")


def compare_speed(options: Benchmark, stream: Path) -> None:
    """Rows per second of the bare loop, of ours on one thread, and of ours on several."""
    contestants: dict[str, Callable[[Path], None]] = {
        "bare loop": lambda out: bare_loop(stream.parent, out),
        "ours": lambda out: ours(stream, out, workers=1),
        f"ours, {options.workers} threads": lambda out: ours(stream, out, workers=options.workers),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for repeat in range(options.repeats):
        for name in list(contestants)[:: -1 if repeat % 2 else 1]:
            with tempfile.TemporaryDirectory() as out:
                wall, cpu = time.perf_counter(), time.process_time()
                contestants[name](Path(out) / "out")
                took[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    for name, times in took.items():
        wall, cpu = (statistics.median(time[at] for time in times) for at in (0, 1))
        against = [
            statistics.median(bare[at] / time[at] for bare, time in zip(took["bare loop"], times, strict=True))
            for at in (0, 1)
        ]
        print(
            f"{name:16} {options.rows / wall:7.0f} rows/s, {options.rows / cpu:7.0f} rows per CPU second; "
            f"of the bare loop: {against[0]:.2f}, by CPU time {against[1]:.2f}"
        )
    pairs = list(zip(took["bare loop"], took["ours"], strict=True))
    checks = "each item, its text and its path are checked, which a bare loop does not; no part of that stands out"
    print_bar("rows per CPU second / bare loop's", [bare[1] / one[1] for bare, one in pairs], "at least", 1.0, checks)
    several = f"ours, {options.workers} threads"
    by_clock = [bare[0] / one[0] for bare, one in zip(took["bare loop"], took[several], strict=True)]
    lock = "only decoding runs beside the rest, which holds Python's lock: about half of a row's time"
    print_bar(f"rows per second of {several} / bare loop's", by_clock, "at least", 1.8, lock)


def ours(stream: Path, out: Path, *, workers: int) -> None:
    report = import_stream(read_stream_file(stream), out, in_order=Threads(workers=workers))
    assert report.refused is None, report.refused


def bare_loop(folder: Path, out: Path) -> None:
    """The least that must be done: every picture read and decoded, every row written."""
    for split in ("train", "test"):
        (out / split).mkdir(parents=True)
        items = json.loads((folder / f"{split}.json").read_text())
        for start in range(0, len(items), SHARD_ROWS):
            shard = bare_records(folder, items[start : start + SHARD_ROWS], split)
            with pq.ParquetWriter(out / split / f"{start}.parquet", SCHEMA, compression="zstd") as writer:
                while group := list(islice(shard, ROW_GROUP_ROWS)):
                    writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))


def bare_records(folder: Path, items: list[dict[str, object]], split: str) -> Iterator[dict[str, object]]:
    for one in items:
        data = (folder / "images" / str(one["image"])).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            width, height = image.size
        turns = one["conversations"]
        assert isinstance(turns, list)
        yield {
            "sample_id": one["id"], "task": "made", "split": split, "image": data, "width": width, "height": height,
            "conversations": json.dumps(turns), "answers": [turns[-1]["value"]], "metric": "exact", "source": "list",
        }  # fmt: skip


def compare_memory(what: str, small: Path, large: Path) -> None:
    peaks = [peak_of(stream) for stream in (small, large)]
    print(f"{what:16} peak {peaks[0]:.0f} MiB, of four times the rows {peaks[1]:.0f} MiB: {peaks[1] / peaks[0]:.2f}")


def peak_of(stream: Path) -> float:
    """Peak resident set in MiB of a fresh process that imports `stream` on one thread."""
    code = (
        "import sys; from pathlib import Path;"
        "from components.data.importing import import_stream, read_stream_file;"
        "import_stream(read_stream_file(Path(sys.argv[1])), Path(sys.argv[2]));"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", code, str(stream), str(Path(out) / "out")]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return int(done.stdout) / 1024


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=(__doc__ or "").split("\n\n")[0]))
