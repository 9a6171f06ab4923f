"""The reproduction ledger: published results as data, and how a run differs from them.

`published/BENCHMARK.json` holds rows as papers and repositories print them, in blocks of one source and one protocol.
Do not mix rows of different blocks: starting weights, epochs, orders and test subsets differ. Figures carry this
project's names (see `figure_names.ALIASES`), whatever the source calls them. All scores are percent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from components.evaluation.matrix import ScoreMatrix

FOLDER = Path(__file__).parent / "published"
# What sources call a backbone and what it starts from, by its name here.
_PUBLISHED_AS = {"llava-hf/llava-1.5-7b-hf": ("LLaVA-1.5-7B", "instruction-tuned weights")}
COMPAT = "compat"  # a published row's scorer: the release's own scripts, which the compat variant follows
IDENTITY_TOLERANCE = 0.05  # of figures printed with two decimals; sound rows stay below 0.02


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One method's results in one source."""

    benchmark: str
    num_tasks: int
    label: str  # the method's name in the source
    method: str | None  # this project's name for it, where it is the same method
    source: str
    trust: str
    protocol: Mapping[str, str]
    final: Mapping[str, float]  # task -> score after the last task
    figures: Mapping[str, float]

    def flaws(self) -> list[str]:
        """Figures of the row that contradict each other.

        MFN = MFT + (T - 1) / T * BWT holds for every matrix, and MFN is the mean of the final scores.
        """
        found: list[str] = []
        final, bwt = self.figures.get("final_average"), self.figures.get("bwt")
        if final is not None and len(self.final) == self.num_tasks:
            mean = sum(self.final.values()) / self.num_tasks
            if abs(mean - final) > IDENTITY_TOLERANCE:
                found.append(f"its final scores average {mean:.2f}, it prints {final:.2f}")
        if bwt is None and "forgetting_diagonal" in self.figures:
            bwt = -self.figures["forgetting_diagonal"]
        immediate = self.figures.get("immediate_average")
        if final is not None and immediate is not None and bwt is not None:
            expected = immediate + (self.num_tasks - 1) / self.num_tasks * bwt
            if abs(expected - final) > IDENTITY_TOLERANCE:
                found.append(f"MFT + (T-1)/T BWT is {expected:.2f}, its final average {final:.2f}")
        return found


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A run against one published row of the same method."""

    row: PublishedRow
    figures: Mapping[str, float]  # ours minus theirs
    final: Mapping[str, float]  # task -> ours minus theirs
    protocol: tuple[str, ...]  # protocol differences, in words


def benchmarks() -> list[str]:
    """Names of the benchmarks with published rows."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def benchmark_of(stream: str) -> str | None:
    """The benchmark whose published rows a stream's results may be compared with; None for all others.

    A stream's orders and variants are its name followed by "-": coin-alphabetical belongs to coin. The mini streams are
    no benchmark: they are other data.
    """
    return next((name for name in benchmarks() if stream == name or stream.startswith(f"{name}-")), None)


def published(benchmark: str) -> list[PublishedRow]:
    """All rows of one benchmark, in the file's order."""
    content = json.loads((FOLDER / f"{benchmark}.json").read_text(encoding="utf-8"))
    return [
        PublishedRow(
            benchmark=benchmark,
            num_tasks=content["num_tasks"],
            label=row["label"],
            method=row.get("method"),
            source=block["source"],
            trust=block["trust"],
            protocol=cast("dict[str, str]", block["protocol"]),
            final=cast("dict[str, float]", row.get("final", {})),
            figures=cast("dict[str, float]", row.get("figures", {})),
        )
        for block in content["blocks"]
        for row in block["rows"]
    ]


def run_protocol(backbone: str, tasks: Sequence[str]) -> dict[str, str]:
    """The protocol of one of our runs, under the keys of the published rows' protocols."""
    name, start = _PUBLISHED_AS.get(backbone, (backbone, "its own weights"))
    return {"backbone": name, "starts_from": start, "order": ", ".join(tasks), "scorer": "fixed"}


def differences(
    stream: str, method: str, matrix: ScoreMatrix, protocol: Mapping[str, str], compat: ScoreMatrix | None = None
) -> list[Difference]:
    """A finished run against every published row of its benchmark and method.

    `protocol` is the run's own (`run_protocol`); a key that it lacks counts as different. `compat` is
    the run's matrix by the released scripts' rules: rows whose scorer is `COMPAT` are compared with it if whole.
    A run of only some tasks is compared task by task: averages over other tasks are not comparable.
    """
    benchmark = benchmark_of(stream)
    if benchmark is None or matrix.points is not None:  # all published rows are of streams with boundaries
        return []
    whole = compat is not None and "final_average" in compat.summary()
    return [
        _difference(row, compat, {**protocol, "scorer": COMPAT})
        if compat is not None and whole and row.protocol.get("scorer") == COMPAT
        else _difference(row, matrix, protocol)
        for row in published(benchmark)
        if row.method == method
    ]


def _difference(row: PublishedRow, matrix: ScoreMatrix, protocol: Mapping[str, str]) -> Difference:
    figures, final = matrix.summary(), dict(zip(matrix.tasks, matrix.rows[-1], strict=True))
    all_tasks = len(matrix.tasks) == row.num_tasks
    otherwise = [
        f"{name}: {protocol.get(name, 'not recorded')}, there {value}"
        for name, value in row.protocol.items()
        if protocol.get(name) != value
    ]
    if not all_tasks:
        otherwise.insert(0, f"tasks: {len(matrix.tasks)}, there {row.num_tasks}: averages are not compared")
    return Difference(
        row=row,
        figures={name: figures[name] - value for name, value in row.figures.items() if all_tasks and name in figures},
        final={task: ours - value for task, value in row.final.items() if (ours := final.get(task)) is not None},
        protocol=tuple(otherwise),
    )
