"""What checkpoints inside a task cost: a real run of the embedded model that writes them often.

    python tests/benchmarks/checkpoints.py [--backbone smol|pocket] [--updates 24] [--every 4] [--method NAME]

A checkpoint costs twice: updates wait while its files are written (**pause**), and those beside its copy into the run's
storage may be slower (**slower**, of the one update that follows). Both are set against 50 updates of the same run.
Aim: at most 3 % of them together. An update is what the run itself reports, with its wait for data; the pause is what
is left of the time between two checkpoints. Medians, and in brackets the smallest and the largest.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from components.core.events import Event, StepDone
from components.training.driver import run_stream
from components.training.plan import plan_stream
from pipelines.presets import coast_domain, pocket

UPDATES_BETWEEN = 50


@dataclass(frozen=True, kw_only=True)
class Options:
    """See above."""

    backbone: Literal["smol", "pocket"] = "smol"
    """The model, with its preset: mini-COAST at size mini, or at size nano."""
    updates: int = 24
    """Updates of the one task that is learned."""
    every: int = 4
    """Updates between checkpoints; at least 2."""
    method: str = "continual_llava"
    """What learns it."""


@dataclass(frozen=True)
class Arrived:
    """One update: when the driver heard of it, and the seconds that it took."""

    update: int
    at_s: float
    step_s: float


def learned(options: Options, storage: Path) -> list[Arrived]:
    """The updates of a run that learns one task and writes checkpoints on the way."""
    preset = coast_domain() if options.backbone == "smol" else pocket()
    config = replace(
        preset.with_method(options.method),
        run_id="checkpoints",
        storage=storage,
        stream=replace(preset.stream, order=("chartqa",)),
        training=replace(
            preset.training, updates_per_task=options.updates, checkpoint_every_updates=options.every, epochs=1
        ),
        evaluation=replace(preset.evaluation, zero_shot=False, limit=1, oracle_routing=False),
    )
    size, found = config.training.global_batch_size, list[Arrived]()

    def handle(event: Event) -> None:
        if isinstance(event, StepDone):
            found.append(Arrived(event.update, time.monotonic(), size / event.samples_per_s))

    run_stream(plan_stream(config), handle)
    return found


def main(options: Options) -> None:
    """Run, and print the two shares and their sum."""
    with tempfile.TemporaryDirectory() as folder:
        updates = learned(options, Path(folder))
    # The figures of an update that a checkpoint follows are read before the checkpoint, those of others one update
    # later. So time is taken between updates before checkpoints only.
    after = [one for one in updates if one.update % options.every == 0]
    pauses = [
        last.at_s - first.at_s - sum(one.step_s for one in updates if first.update < one.update <= last.update)
        for first, last in itertools.pairwise(after)
    ]
    following = [one.step_s for one in updates if one.update > options.every and one.update % options.every == 1]
    others = [one.step_s for one in updates if one.update % options.every > 1]
    step = statistics.median(others)
    whole = UPDATES_BETWEEN * step
    pause, slower = statistics.median(pauses), statistics.median(following) - step
    print(f"{options.backbone}, {options.method}: {len(updates)} updates of {step:.2f} s, {len(pauses)} checkpoints")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(
        f"pause {pause:.3f} s [{min(pauses):.3f}, {max(pauses):.3f}]: {pause / whole:.2%} of {UPDATES_BETWEEN} updates"
    )
    print(f"slower by {slower:.3f} s in the update that follows: {max(0.0, slower) / whole:.2%}")
    print(f"together {(pause + max(0.0, slower)) / whole:.2%} of {UPDATES_BETWEEN} updates; aim: at most 3 %")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
