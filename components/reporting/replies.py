"""The replies of a finished run, from the predictions in its folder, and which rows were learned and then lost.

A row is *right* from a score of 0.5 on, ANLS's own threshold; it is lost when it was right just after its task was
learned and is not after the last task. Why, told by other readings of the last reply, as forgetting is split in
components/evaluation/forgetting.py: with the task known at test the row is right (routing error) or not (weight
drift); the answer inside a reply of the wrong form is right (format) or not (knowledge).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import ConfigError
from components.runs.results import FinishedRun, ItemScores

RIGHT = 0.5
KINDS = ("routing error", "weight drift", "format", "knowledge")
UNTOLD = "not told apart"  # no other reading was made
_TEXTS = ("after", "task", "sample_id", "prompt", "prediction", "routed_to")
_SCORES = ("oracle_score", "repaired_score")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One reply to one test row; scores 0..1, None where a reading was not made."""

    after: str
    task: str
    sample_id: str
    prompt: str
    text: str
    answers: tuple[str, ...]
    score: float
    oracle_score: float | None
    repaired_score: float | None
    routed_to: str | None
    slots: tuple[int, ...]

    @property
    def right(self) -> bool:
        """Whether the reply counts as right."""
        return self.score >= RIGHT


@dataclass(frozen=True, kw_only=True)
class LostRow:
    """A test row that was learned then lost: its replies from when its task was new, in the stream's order."""

    replies: tuple[Reply, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of `KINDS`, one by every reading that was made; `UNTOLD` alone without any."""
        last, found = self.replies[-1], list[str]()
        if last.oracle_score is not None:
            found.append("routing error" if last.oracle_score >= RIGHT else "weight drift")
        if last.repaired_score is not None:
            found.append("format" if last.repaired_score >= RIGHT else "knowledge")
        return tuple(found) or (UNTOLD,)


def replies_of(run: FinishedRun) -> list[Reply]:
    """Every reply, in the order they were made; none for a record, which holds no replies. Raises `ConfigError`."""
    files = sorted((run.path / "predictions").glob("*.parquet"))
    found = [reply for path in files for reply in _read(path)]
    for reply in found:
        if reply.after not in run.matrix.after or reply.task not in run.matrix.tasks:
            raise ConfigError(
                f"the predictions of {run.path} hold {reply.task!r} after {reply.after!r}, which its score matrix "
                "lacks; put the run's own files back."
            )
    return found


def row_scores(run: FinishedRun, replies: list[Reply]) -> ItemScores:
    """Every test row's score, by sample id in order: those of `replies`, or those that a record holds."""
    if run.path.is_file():
        return json.loads(run.path.read_text(encoding="utf-8"))["item_scores"]
    found: ItemScores = {}
    for reply in sorted(replies, key=lambda one: one.sample_id):
        found.setdefault(reply.after, {}).setdefault(reply.task, []).append(reply.score)
    return found


def lost_rows(run: FinishedRun, replies: list[Reply]) -> dict[tuple[str, str], LostRow]:
    """The rows learned then lost, by task and sample id."""
    after = run.matrix.after
    known = set(run.matrix.tasks[: run.matrix.num_learned])
    histories: dict[tuple[str, str], list[Reply]] = {}
    for reply in sorted(replies, key=lambda one: after.index(one.after)):
        if reply.task in known and after.index(reply.after) >= after.index(reply.task):
            histories.setdefault((reply.task, reply.sample_id), []).append(reply)
    return {
        key: LostRow(replies=tuple(history))
        for key, history in sorted(histories.items())
        if history[0].after == key[0] and history[-1].after == after[-1] and history[0].right and not history[-1].right
    }


def _read(path: Path) -> list[Reply]:
    """The replies of one row of the matrix. Runs of earlier versions have fewer columns, and may have no texts."""
    table = pq.read_table(path)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    empty: list[None] = [None] * table.num_rows

    def texts(name: str) -> list[str]:
        return ["" if value is None else str(value) for value in columns.get(name, empty)]

    def floats(name: str) -> list[float | None]:
        return cast("list[float | None]", columns.get(name, empty))

    scores = table.column("score").cast(pa.float64()).to_pylist()
    after, task, sample_id, prompt, prediction, routed_to = (texts(name) for name in _TEXTS)
    oracle, repaired = (floats(name) for name in _SCORES)
    answers, slots = columns.get("answers", empty), columns.get("slots", empty)
    return [
        Reply(
            after=after[at],
            task=task[at],
            sample_id=sample_id[at],
            prompt=prompt[at],
            text=prediction[at],
            answers=tuple(answers[at] or ()),
            score=cast("float", scores[at]),
            oracle_score=oracle[at],
            repaired_score=repaired[at],
            routed_to=routed_to[at] or None,
            slots=tuple(slots[at] or ()),
        )
        for at in range(table.num_rows)
    ]
