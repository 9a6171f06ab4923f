"""What it costs that a checkpoint is on disk before it counts: its copy into a run's folder, with and without syncing.

    python tests/benchmarks/syncing.py [--folder DIR] [--repeats 15]

Both sides take turns on the same files, of the sizes that the presets' checkpoints inside a task have: trained values
and Adam's two moments; the method at the task's start is in the run's folder by then. The folder's file system decides.
Updates wait for neither side, since these copies are made beside them. Medians, and in brackets the smallest and the
largest.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro

from components.core.checkpoint import write_checkpoint
from components.core.files import size, whole_file, whole_folder
from components.training.checkpointing import copy_files
from components.training.counting import counted
from pipelines.presets import coast_domain, pocket

TRAINED = ("trained", "first", "second")  # files, each with as many numbers as are trained


@dataclass(frozen=True, kw_only=True)
class Options:
    """See above."""

    folder: Path = Path()
    """Where the files are written, in a folder of their own that is removed again."""
    repeats: int = 15
    """Turns of each side."""


def copied(source: Path, folder: Path, durable: bool) -> None:
    """As a checkpoint is copied into a run's folder."""
    with whole_folder(folder, durable=durable) as unfinished:
        copy_files(source, unfinished)


def written(text: str, path: Path, durable: bool) -> None:
    """As a record of a run is written."""
    with whole_file(path, durable=durable) as unfinished:
        unfinished.write_text(text)


def taking_turns(side: Callable[[Path, bool], None], folder: Path, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds without and with syncing."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(2 * repeats):
        durable = (number + number // 2) % 2 == 1  # the first of a pair is now the one, now the other
        path = folder / f"{number}"
        begin = time.perf_counter()
        side(path, durable)
        seconds[durable].append(time.perf_counter() - begin)
    return seconds


def show(name: str, plain: list[float], synced: list[float]) -> None:
    """One row."""
    without, with_it = statistics.median(plain), statistics.median(synced)
    ratios = [each / without for each in synced]
    print(
        f"{name}: {without * 1e3:.1f} ms without, {with_it * 1e3:.1f} ms with; ratio {with_it / without:.2f} "
        f"[{min(ratios):.2f}, {max(ratios):.2f}]"
    )


def main(options: Options) -> None:
    """Print a row for each preset and one for a small file."""
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        for name, config in {"pocket": pocket(), "smol": coast_domain()}.items():
            number = counted(config.backbone, config.method).method
            assert number is not None
            source = folder / name
            source.mkdir()
            write_checkpoint(
                source,
                {"made": "for a benchmark"},
                {each: {"a": torch.rand(sum(number.trainable))} for each in TRAINED},
            )
            bytes_ = sum(file.stat().st_size for file in source.iterdir())
            into = folder / f"{name}-copies"
            into.mkdir()
            turns = taking_turns(partial(copied, source), into, options.repeats)
            show(f"{name} checkpoint of {size(bytes_)}", *turns)
        show("record of 2 kB", *taking_turns(partial(written, "x" * 2000), folder, options.repeats))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
