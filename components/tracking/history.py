"""The rows of a running stream, and what a tracker records of them: metrics, JSON, a table, Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from components.core.errors import TrackingError
from components.core.events import RowScored
from components.core.naming import metric_names
from components.evaluation.decisions import Decisions
from components.evaluation.figure_names import LABELS, NO_BOUNDARIES
from components.evaluation.forgetting import SPLIT_LABELS, split_if_known
from components.evaluation.matrix import ZERO_SHOT, Cell, ScoreMatrix

Scores = dict[str, Cell]


@dataclass(frozen=True, kw_only=True)
class ScoreHistory:
    """Rows by the number of tasks learned."""

    tasks: list[str] = field(default_factory=list)  # known from the first row on
    points: list[str] | None = None  # of a stream without boundaries, likewise
    scores: dict[int, Scores] = field(default_factory=dict)
    variants: dict[str, dict[int, Scores]] = field(default_factory=dict)  # other ways to score the same rows, by name

    def with_row(self, event: RowScored) -> ScoreHistory | None:
        """The history with this row added; None if it is there already. Raises `TrackingError` for other tasks."""
        tasks = list(event.scores)
        if self.tasks and tasks != self.tasks:
            raise TrackingError(
                f"this run recorded the tasks {self.tasks} and now got {tasks}; one run id is one stream, "
                "start another run id for another stream"
            )
        scores = self.scores | {event.tasks_learned: dict(event.scores)}
        variants = dict(self.variants)
        for name, cells in event.variants.items():
            variants[name] = variants.get(name, {}) | {event.tasks_learned: dict(cells)}
        history = ScoreHistory(tasks=tasks, points=event.points, scores=scores, variants=variants)
        return None if history == self else history

    def matrix(self, num_learned: int | None = None) -> ScoreMatrix:
        """The matrix as recorded, optionally only up to `num_learned` tasks."""
        return _matrix(self.tasks, self.points, self.scores, num_learned)

    def variant(self, name: str, num_learned: int | None = None) -> ScoreMatrix | None:
        """A variant of the matrix, such as "oracle"; None if it was not measured."""
        rows = self.variants.get(name)
        return None if rows is None else _matrix(self.tasks, self.points, rows, num_learned)

    def metrics(self, event: RowScored) -> dict[str, float]:
        """What a row adds to the stream's curves: scores, the figures so far, routing, seconds, bytes."""
        names = metric_names(self.tasks)
        values: dict[str, Cell] = {f"accuracy/{names[task]}": cell for task, cell in event.scores.items()}
        matrix = self.matrix(event.tasks_learned)
        values |= matrix.summary()
        others = {name: self.variant(name, event.tasks_learned) for name in event.variants}
        for variant, cells in event.variants.items():
            other = others[variant]
            assert other is not None, "the event's row is in the history"
            values |= {f"{variant}/accuracy/{names[task]}": cell for task, cell in cells.items()}
            values |= {f"{variant}/{name}": value for name, value in other.summary().items()}
        values |= split_if_known(matrix, others)
        if event.well_formed:
            values |= {f"well_formed/{names[task]}": share for task, share in event.well_formed.items()}
            values["well_formed_mean"] = sum(event.well_formed.values()) / len(event.well_formed)
        if event.routing_accuracy:
            values |= {f"routing_accuracy/{names[task]}": share for task, share in event.routing_accuracy.items()}
            values["routing_accuracy_mean"] = sum(event.routing_accuracy.values()) / len(event.routing_accuracy)
        if event.decisions:
            values |= Decisions.from_dict(event.decisions).metrics(event.after, names)
        if event.slot_usage:
            served = [sum(counts) for counts in zip(*event.slot_usage.values(), strict=True)]
            values |= {"slots/total": len(served), "slots/dead": served.count(0)}
        values |= {
            "cost/train_s": event.train_s,
            "cost/evaluate_s": event.evaluate_s,
            "cost/peak_memory_gib": event.peak_memory_bytes / 2**30,
        }
        if event.replies:
            values["cost/kept_replies"] = event.kept_replies / event.replies
        return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}

    def to_content(self, tags: Mapping[str, str]) -> dict[str, object]:
        """score_matrix.json, with the oracle rows beside; names of the run come from its tags."""
        others = {name: self.variant(name) for name in self.variants}
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
    def from_content(cls, content: Mapping[str, object]) -> ScoreHistory:
        """The inverse of `to_content`; raises `MatrixError` when it is no score_matrix.json."""
        matrix = ScoreMatrix.from_dict(content)
        variants = {
            name: _by_number(ScoreMatrix.from_dict(other)) for name, other in content.items() if _is_matrix(other)
        }
        return cls(tasks=matrix.tasks, points=matrix.points, scores=_by_number(matrix), variants=variants)

    def markdown(self, most: int | None = None) -> str:
        """The matrix and its figures as Markdown tables, in at most `most` characters.

        A matrix that is too long for them has fewer columns and rows: the newest tasks', as a sentence says.
        """
        matrix = self.matrix()
        figures = [f"- {LABELS[name]}: **{value:.2f}**" for name, value in matrix.summary().items()]
        oracle = self.variant("oracle")
        if oracle is not None and "final_average" in oracle.summary():
            figures.append(f"- Final average with oracle routing: **{oracle.final_average():.2f}**")
        split = split_if_known(matrix, {name: self.variant(name) for name in self.variants})
        figures += [f"- {SPLIT_LABELS[name].strip()}: **{value:.2f}**" for name, value in split.items()]
        if matrix.points is not None:
            figures.append(f"\n{NO_BOUNDARIES}")
        shown = max(len(matrix.tasks), len(matrix.steps))
        text = _markdown(matrix, figures, shown)
        while most is not None and len(text) > most and shown > 0:
            shown = shown * 3 // 4
            text = _markdown(matrix, figures, shown)
        return text


def _markdown(matrix: ScoreMatrix, figures: list[str], shown: int) -> str:
    """The last `shown` rows, and the columns of the last `shown` tasks that have been learned from."""
    tasks, scores = matrix.tasks, matrix.rows  # read once: `rows` makes all of the matrix anew
    if shown >= max(len(tasks), len(matrix.steps)):
        columns, rows, left_out = range(len(tasks)), range(len(scores)), []
    else:
        end = max(len(matrix.counted), min(shown, len(tasks)))
        columns = range(max(0, end - shown), end)
        rows = range(max(0, len(scores) - shown), len(scores))
        left_out = [f"{len(columns)} of {len(tasks)} tasks are shown; score_matrix.json has all.", ""]
    lines = ["| after | " + " | ".join(tasks[column] for column in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = ["" if (cell := scores[row][column]) is None else f"{cell:.2f}" for column in columns]
        lines.append(f"| {matrix.after[row]} | " + " | ".join(cells) + " |")
    return "\n".join([*left_out, *(lines if columns else []), "", *figures])


def _matrix(
    tasks: list[str], points: list[str] | None, rows: Mapping[int, Scores], num_learned: int | None
) -> ScoreMatrix:
    """Rows in between that were not scored are empty."""
    known = [number for number in rows if num_learned is None or number <= num_learned]
    numbers = range(0 if 0 in known else 1, max(known, default=0) + 1)
    steps = tasks if points is None else points
    pairs = [(ZERO_SHOT if number == 0 else steps[number - 1], rows.get(number, {})) for number in numbers]
    return ScoreMatrix.from_scores(tasks, pairs, points=points)


def _is_matrix(content: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(content, Mapping) and "rows" in content


def _by_number(matrix: ScoreMatrix) -> dict[int, Scores]:
    first = 0 if matrix.has_zero_shot else 1
    rows = {first + number: dict(zip(matrix.tasks, row, strict=True)) for number, row in enumerate(matrix.rows)}
    return {number: row for number, row in rows.items() if any(cell is not None for cell in row.values())}


def question(tags: Mapping[str, str]) -> str:
    """The description of a run: the question that it answers."""
    return (
        f"**Question.** Taught the stream `{tags.get('stream', '?')}` task by task with `{tags.get('method', '?')}` on "
        f"`{tags.get('backbone', '?')}` (seed {tags.get('seed', '?')}): how well is each task learned, and how much of "
        "the earlier ones is kept?"
    )
