"""The rows of a running stream as they arrive, and what a tracker records of them: metrics, JSON, table, Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from components.errors import TrackingError
from components.evaluation.decomposition import SPLIT_LABELS, split_if_known
from components.evaluation.matrix import LABELS, ScoreMatrix
from components.evaluation.matrix_rows import ZERO_SHOT, Cell
from components.events import RowScored
from components.run_facts import metric_names

Scores = dict[str, Cell]


@dataclass(frozen=True, kw_only=True)
class RowBook:
    """Rows by the number of tasks learned."""

    tasks: list[str] = field(default_factory=list)  # known from the first row on
    scores: dict[int, Scores] = field(default_factory=dict)
    oracle_scores: dict[int, Scores] = field(default_factory=dict)
    repaired_scores: dict[int, Scores] = field(default_factory=dict)

    def with_row(self, event: RowScored) -> RowBook | None:
        """A book that also holds this row; None when it holds just this already. `TrackingError`: other tasks."""
        tasks = list(event.scores)
        if self.tasks and tasks != self.tasks:
            raise TrackingError(
                f"this run recorded the tasks {self.tasks} and now got {tasks}; one run id is one stream, "
                "start another run id for another stream"
            )
        scores = self.scores | {event.tasks_learned: dict(event.scores)}
        book = RowBook(
            tasks=tasks,
            scores=scores,
            oracle_scores=_with(self.oracle_scores, event.tasks_learned, event.oracle_scores),
            repaired_scores=_with(self.repaired_scores, event.tasks_learned, event.repaired_scores),
        )
        return None if book == self else book

    def matrix(self, num_learned: int | None = None) -> ScoreMatrix:
        """The matrix as recorded, optionally only up to `num_learned` tasks."""
        return _matrix(self.tasks, self.scores, num_learned)

    def oracle(self, num_learned: int | None = None) -> ScoreMatrix | None:
        """The matrix under oracle routing; None when it was never asked for."""
        return _matrix(self.tasks, self.oracle_scores, num_learned) if self.oracle_scores else None

    def repaired(self, num_learned: int | None = None) -> ScoreMatrix | None:
        """The matrix of the answers found in wrongly formed replies; None for a run older than that."""
        return _matrix(self.tasks, self.repaired_scores, num_learned) if self.repaired_scores else None

    def metrics(self, event: RowScored) -> dict[str, float]:
        """What a row adds to the stream's curves: scores, the figures so far, routing, seconds, bytes."""
        names = metric_names(self.tasks)
        values: dict[str, Cell] = {f"accuracy/{names[task]}": cell for task, cell in event.scores.items()}
        matrix = self.matrix(event.tasks_learned)
        values |= matrix.summary()
        oracle = None if event.oracle_scores is None else self.oracle(event.tasks_learned)
        repaired = None if event.repaired_scores is None else self.repaired(event.tasks_learned)
        for reading, cells, other in (
            ("oracle", event.oracle_scores, oracle),
            ("repaired", event.repaired_scores, repaired),
        ):
            if cells is not None and other is not None:
                values |= {f"{reading}/accuracy/{names[task]}": cell for task, cell in cells.items()}
                values |= {f"{reading}/{name}": value for name, value in other.summary().items()}
        values |= split_if_known(matrix, oracle, repaired)
        if event.well_formed:
            values |= {f"well_formed/{names[task]}": share for task, share in event.well_formed.items()}
            values["well_formed_mean"] = sum(event.well_formed.values()) / len(event.well_formed)
        if event.routing_accuracy:
            values |= {f"routing_accuracy/{names[task]}": share for task, share in event.routing_accuracy.items()}
            values["routing_accuracy_mean"] = sum(event.routing_accuracy.values()) / len(event.routing_accuracy)
        if event.slot_usage:
            served = [sum(counts) for counts in zip(*event.slot_usage.values(), strict=True)]
            values |= {"slots/total": len(served), "slots/dead": served.count(0)}
        values |= {
            "cost/train_s": event.train_s,
            "cost/evaluate_s": event.evaluate_s,
            "cost/peak_memory_gib": event.peak_memory_bytes / 2**30,
        }
        return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}

    def to_content(self, tags: Mapping[str, str]) -> dict[str, object]:
        """score_matrix.json, with the oracle rows beside; names of the run come from its tags."""
        others = {"oracle": self.oracle(), "repaired": self.repaired()}
        seed = tags.get("seed", "0")
        return self.matrix().to_dict(
            stream=tags.get("stream", ""),
            method=tags.get("method", ""),
            backbone=tags.get("backbone", ""),
            seed=int(seed) if seed.lstrip("-").isdigit() else 0,
            extra={
                name: other.to_dict(stream="", method="", backbone="", seed=0)
                for name, other in others.items()
                if other is not None
            },
        )

    @classmethod
    def from_content(cls, content: Mapping[str, object]) -> RowBook:
        """The inverse of `to_content`; raises `MatrixError` when it is no score_matrix.json."""
        matrix = ScoreMatrix.from_dict(content)
        oracle, repaired = (
            _by_number(ScoreMatrix.from_dict(other)) if isinstance(other, Mapping) else {}
            for other in (content.get("oracle"), content.get("repaired"))
        )
        return cls(tasks=matrix.tasks, scores=_by_number(matrix), oracle_scores=oracle, repaired_scores=repaired)

    def table(self) -> dict[str, list[str | Cell]]:
        """The matrix by columns: "after", then one column per task."""
        matrix = self.matrix()
        columns: dict[str, list[str | Cell]] = {"after": list(matrix.after)}
        for number, task in enumerate(matrix.tasks):
            columns[task] = [row[number] for row in matrix.rows]
        return columns

    def markdown(self) -> str:
        """The matrix and its figures as Markdown tables."""
        matrix = self.matrix()
        lines = ["| after | " + " | ".join(matrix.tasks) + " |", "|---" * (len(matrix.tasks) + 1) + "|"]
        for after, row in zip(matrix.after, matrix.rows, strict=True):
            cells = ["" if cell is None else f"{cell:.2f}" for cell in row]
            lines.append(f"| {after} | " + " | ".join(cells) + " |")
        figures = [f"- {LABELS[name]}: **{value:.2f}**" for name, value in matrix.summary().items()]
        oracle = self.oracle()
        if oracle is not None and "final_average" in oracle.summary():
            figures.append(f"- Final average with oracle routing: **{oracle.final_average():.2f}**")
        split = split_if_known(matrix, oracle, self.repaired())
        figures += [f"- {SPLIT_LABELS[name].strip()}: **{value:.2f}**" for name, value in split.items()]
        return "\n".join([*lines, "", *figures])


def _matrix(tasks: list[str], rows: Mapping[int, Scores], num_learned: int | None) -> ScoreMatrix:
    """Rows in between that were never scored become empty rows."""
    known = [number for number in rows if num_learned is None or number <= num_learned]
    numbers = range(0 if 0 in known else 1, max(known, default=0) + 1)
    pairs = [(ZERO_SHOT if number == 0 else tasks[number - 1], rows.get(number, {})) for number in numbers]
    return ScoreMatrix.from_scores(tasks, pairs)


def _with(rows: Mapping[int, Scores], number: int, scores: Scores | None) -> dict[int, Scores]:
    """The rows and one more, where it was measured."""
    return dict(rows) if scores is None else {**rows, number: dict(scores)}


def _by_number(matrix: ScoreMatrix) -> dict[int, Scores]:
    first = 0 if matrix.has_zero_shot else 1
    rows = {first + number: dict(zip(matrix.tasks, row, strict=True)) for number, row in enumerate(matrix.rows)}
    return {number: row for number, row in rows.items() if any(cell is not None for cell in row.values())}
