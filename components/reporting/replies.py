"""The replies of a finished run, from the predictions in its folder, and which rows were learned and then lost.

A row is lost when its reply was right (`Prediction.is_correct`) just after its task was learned and is wrong after the
last task; in a stream without boundaries, when it was right at any point in time and is wrong at the last one. Variants
of the last score tell why, as forgetting is split in components/evaluation/forgetting.py: with the task known at test
the reply is right (routing error) or not (weight drift); the answer inside a reply of the wrong form is right (format)
or not (knowledge).
"""

from __future__ import annotations

from dataclasses import dataclass

from components.core.errors import ConfigError
from components.evaluation.predictions import CORRECT_FROM, Prediction, run_predictions
from components.runs.results import FinishedRun

KINDS = ("routing error", "weight drift", "format", "knowledge")
UNKNOWN_KIND = "kind unknown"  # no other variant of the score was measured


@dataclass(frozen=True, kw_only=True)
class LostRow:
    """A test row that was learned then lost: its replies from when its task was new on, in the stream's order; without
    boundaries from the first right one on.
    """

    replies: tuple[Prediction, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of `KINDS`, one for each variant that was measured; only `UNKNOWN_KIND` without any."""
        last, found = self.replies[-1], list[str]()
        if last.oracle_score is not None:
            found.append("routing error" if last.oracle_score >= CORRECT_FROM else "weight drift")
        if last.repaired_score is not None:
            found.append("format" if last.repaired_score >= CORRECT_FROM else "knowledge")
        return tuple(found) or (UNKNOWN_KIND,)


def replies_of(run: FinishedRun) -> list[Prediction]:
    """Every reply, in the order they were made; none for a record, which has no replies. Raises `ConfigError`."""
    found = list(run_predictions(run.path))
    for reply in found:
        if reply.after not in run.matrix.after or reply.task not in run.matrix.tasks:
            raise ConfigError(
                f"the predictions of {run.path} hold {reply.task!r} after {reply.after!r}, which its score matrix "
                "lacks; put the run's own files back."
            )
    return found


def lost_rows(run: FinishedRun, replies: list[Prediction]) -> dict[tuple[str, str], LostRow]:
    """The rows learned then lost, by task and sample id."""
    after = run.matrix.after
    known, clear, trained = set(run.matrix.counted), run.matrix.points is None, run.matrix.has_zero_shot
    histories: dict[tuple[str, str], list[Prediction]] = {}
    for reply in sorted(replies, key=lambda one: after.index(one.after)):
        if reply.task in known and after.index(reply.after) >= (after.index(reply.task) if clear else trained):
            histories.setdefault((reply.task, reply.sample_id), []).append(reply)
    if not clear:
        histories = {key: _from_first_right(history) for key, history in histories.items()}
    return {
        key: LostRow(replies=tuple(history))
        for key, history in sorted(histories.items())
        if (history[0].after == key[0] or not clear)
        and history[-1].after == after[-1]
        and history[0].is_correct
        and not history[-1].is_correct
    }


def _from_first_right(history: list[Prediction]) -> list[Prediction]:
    """The replies from the first right one on; all of them where none was."""
    first = next((number for number, reply in enumerate(history) if reply.is_correct), 0)
    return history[first:]
