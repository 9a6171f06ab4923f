"""Where kept replies lie: those of the run in its predictions, those of the frozen model beside the vision cache.

    <run>/predictions/*.parquet                  every reply with its key; read where the manifest's checksum holds
    <cache>/unaided-replies/<xx>/<asked>.json    replies that no method had a part in: zero-shot ones, shared by runs

A key is what a reply was made from (see evaluation/reuse.py), so whoever finds the key may take the reply. A file that
is damaged, or of another making, counts as missing, and its rows are answered again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from components.adapters.serving import Digests
from components.core.errors import DataError
from components.core.events import Event, Note
from components.core.files import write_bytes
from components.core.location import Place
from components.data.suite import Suite
from components.data.tasks import Task
from components.evaluation.generation import Answer
from components.evaluation.manifest import is_as_noted
from components.evaluation.matrix import when
from components.evaluation.predictions import PREDICTIONS_FOLDER, Prediction, read_predictions
from components.evaluation.reuse import KeptReply, Reuse
from components.training.config import EvaluationConfig

UNAIDED_FOLDER, FORMAT = "unaided-replies", "littoral-replies-1"
_COLUMNS = (
    *("after", "task", "sample_id", "prediction", "score", "routed_to", "slots", "matched"),
    *("oracle_prediction", "reply_key", "oracle_reply_key", "answered_in"),
    *("log_likelihoods", "oracle_log_likelihoods"),
)


class KeptReplies:
    """By task or suite, the replies that it had in the run so far, on one rank."""

    def __init__(self, run_dir: Place, shared: Place, evaluation: EvaluationConfig) -> None:
        """`shared`: the folder of what runs share."""
        self._run_dir, self._shared, self._evaluation = run_dir, shared, evaluation
        self._known: dict[str, dict[str, KeptReply]] = {}
        self._in_files: dict[str, dict[str, KeptReply]] | None = None  # None: they are read when next asked for

    def unaided(self, task: Task | Suite, num_rows: int, arithmetic: str, num_workers: int) -> UnaidedReplies | None:
        """The file of the frozen model's own replies to these rows; None where no reply is to be kept."""
        if not self._evaluation.reuse:
            return None
        how: list[object] = [self._evaluation.batch_size, self._evaluation.batch_tokens, num_workers]
        if self._evaluation.replies != "generated":
            how.append(self._evaluation.replies)
        if self._evaluation.refill:
            how.append("refill")
        return UnaidedReplies.of(self._shared, [arithmetic, task.test.digest, num_rows, task.max_new_tokens, how])

    def reuse(
        self,
        task: Task | Suite,
        unaided: UnaidedReplies | None,
        arithmetic: str,
        state: str,
        digests: Digests,
    ) -> Reuse | None:
        """How to find replies to a task's or suite's rows; the run's own go before those that runs share."""
        if unaided is None:
            return None
        known = {**unaided.read(), **self.of(task.name)}
        return Reuse(known=known, arithmetic=arithmetic, state=state, digests=digests, asked=[task.test.digest])

    def of(self, name: str) -> Mapping[str, KeptReply]:
        """By key, all replies that a task or suite had in the run; empty if it was never answered."""
        if self._in_files is None:
            self._in_files = _in_files(self._run_dir)
        return {**self._in_files.get(name, {}), **self._known.get(name, {})}

    def answered(self, name: str, answers: Iterable[Answer], cell: str) -> None:
        """Remember the replies of a task or suite after `cell`. One that was answered before stays where it was."""
        known = self._known.setdefault(name, {})
        for key, kept in _kept(answers, cell):
            known.setdefault(key, kept)

    def read_again(self) -> None:
        """There are replies that this process did not make: look into the files again when next asked."""
        self._in_files = None


@dataclass
class Tally:
    """How many replies of one row of the matrix were kept."""

    kept: int = 0
    shared: Counter[str] = field(default_factory=Counter)  # of them, by the run that had answered them

    def add(self, answers: Iterable[Answer]) -> None:
        """Count the answers of one task."""
        for one in answers:
            if one.kept is not None:
                self.kept += 1
                self.shared.update(filter(None, [one.kept.run]))

    def tell(self, send: Callable[[Event], None], after: str) -> None:
        """Send a note on what other runs had answered, if anything."""
        if self.shared:
            count, runs = sum(self.shared.values()), ", ".join(sorted(self.shared))
            send(Note(text=f"scoring {when(after)}: {count} replies of the frozen model come from {runs}"))


def earlier_row(answer: Answer, cell: str) -> str | None:
    """The row of this run whose reply an answer after `cell` is; None where that is the same row.

    It follows from the keys alone, so a run that was killed and continued says what an undisturbed one says. Replies
    that another run shared count as this row's: whether there are any depends on what else lies in the storage.
    """
    kept = answer.kept
    return None if kept is None or kept.run is not None or kept.cell == cell else kept.cell


def _kept(answers: Iterable[Answer], cell: str) -> Iterator[tuple[str, KeptReply]]:
    for one in answers:
        where = earlier_row(one, cell) or cell
        if one.key is not None:
            yield (
                one.key,
                KeptReply(
                    text=one.text,
                    cell=where,
                    slots=one.slots,
                    routed_to=one.routed_to,
                    matched=one.matched,
                    log_likelihoods=one.log_likelihoods,
                ),
            )
        if one.oracle_key is not None and one.oracle_text is not None:
            yield (
                one.oracle_key,
                KeptReply(text=one.oracle_text, cell=where, log_likelihoods=one.oracle_log_likelihoods),
            )


def _in_files(run_dir: Place) -> dict[str, dict[str, KeptReply]]:
    """By task or suite, the replies of all files whose checksum is the one noted."""
    folder = run_dir / PREDICTIONS_FOLDER
    found: dict[str, dict[str, KeptReply]] = {}
    for path in [*folder.glob("*.parquet"), *folder.glob("general/*.parquet")]:
        if not is_as_noted(run_dir, path):
            continue
        of_file: dict[str, dict[str, KeptReply]] = {}
        try:
            for one in read_predictions(path, _COLUMNS):
                of_file.setdefault(one.task, {}).update(_of_prediction(one))
        except DataError:
            continue
        for task, replies in of_file.items():
            found.setdefault(task, {}).update(replies)
    return found


def _of_prediction(one: Prediction) -> Iterator[tuple[str, KeptReply]]:
    where = one.answered_in or one.after
    if one.reply_key is not None:
        kept = KeptReply(
            text=one.prediction,
            cell=where,
            slots=None if one.slots is None else tuple(one.slots),
            routed_to=one.routed_to,
            matched=one.matched,
            log_likelihoods=_numbers(one.log_likelihoods),
        )
        yield one.reply_key, kept
    if one.oracle_reply_key is not None and one.oracle_prediction is not None:
        numbers = _numbers(one.oracle_log_likelihoods)
        yield one.oracle_reply_key, KeptReply(text=one.oracle_prediction, cell=where, log_likelihoods=numbers)


def _numbers(found: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if found is None else tuple(found)


@dataclass(frozen=True, kw_only=True)
class UnaidedReplies:
    """The frozen model's own replies to one task or suite, in one file that runs share."""

    path: Place

    @classmethod
    def of(cls, root: Place, asked: object) -> UnaidedReplies:
        """`asked`: all of JSON that tells which rows are answered how; it only decides where the file is."""
        name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        return cls(path=root / UNAIDED_FOLDER / name[:2] / f"{name}.json")

    def read(self) -> dict[str, KeptReply]:
        """By key; empty for a file that is missing, damaged or not ours."""
        try:
            content = json.loads(self.path.read_bytes())
            replies = content["replies"]
            if content["format"] != FORMAT or content["sha256"] != _digest(replies):
                return {}
            return {
                str(key): KeptReply(
                    text=str(text),
                    cell=str(cell),
                    run=str(run),
                    log_likelihoods=tuple(map(float, numbers[0])) if numbers else None,
                )
                for key, (text, run, cell, *numbers) in replies.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def add(self, answers: Iterable[Answer], run: str, cell: str) -> None:
        """Add what the frozen model alone has answered now; nothing is written if there is nothing new."""
        known = self.read()
        new = {
            one.key: KeptReply(text=one.text, cell=cell, run=run, log_likelihoods=one.log_likelihoods)
            for one in answers
            if one.unaided and one.key is not None and one.key not in known
        }
        if new:
            replies = {key: _plain(kept) for key, kept in sorted({**known, **new}.items())}
            content = {"format": FORMAT, "sha256": _digest(replies), "replies": replies}
            write_bytes(self.path, json.dumps(content).encode())


def _plain(kept: KeptReply) -> list[object]:
    numbers = [] if kept.log_likelihoods is None else [list(kept.log_likelihoods)]
    return [kept.text, kept.run, kept.cell, *numbers]


def _digest(replies: object) -> str:
    return hashlib.sha256(json.dumps(replies, sort_keys=True).encode()).hexdigest()
