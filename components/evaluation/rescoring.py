"""Score a whole result file of a released task: which lines count, and which reference each is scored against.

`compat` follows the released scripts where they define it. ScienceQA goes over the split (no reply is wrong, the last
of several replies counts); ImageNet pairs the n-th reply with the n-th record; GQA goes over the replies by id (again
the last counts) and leaves out questions that are not balanced; all others count every line, find its record by id and
never miss records without a reply. `fixed` needs exactly one reply to every record, by id, and refuses anything else.
For COAST, which has no scripts, both modes do so. TRACE's replies and records are paired by position. UCIT's
captions are paired by position too, and scored as a whole file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.core.errors import ConfigError, DataError
from components.evaluation import released_files
from components.evaluation.released_files import Annotation, QuestionId, ReleasedReply
from components.metrics.captions import INSTALL, MEAN, caption_figures, java_home
from components.metrics.released.references import accepted_answers
from components.metrics.released.tasks import COAST, RELEASED, TRACE, Mode, is_caption_task, released_task

Answered = tuple[str, Annotation]  # a reply and what it is scored against
Annotations = Sequence[Annotation]
Replies = Sequence[ReleasedReply]
AnnotationsById = dict[QuestionId, Annotation]

TEST_SPLIT = "test"  # of ScienceQA's pid_splits.json
NO_REPLY = "FAILED"  # what the released ScienceQA script takes for a reply that is missing; no letter is in it
UNBALANCED = "Replies to questions that are not balanced, left out"
_AS_TEXT = ("textvqa", "vqav2")  # their scripts compare ids as text, so 7 finds "7"; the others do not
_READERS: dict[str, Callable[[Path], list[Annotation]]] = {
    "textvqa": released_files.read_data_list,
    "gqa": released_files.read_questions,
    **{f"trace/{task}": released_files.read_in_order for task in TRACE},
    **{task: released_files.read_captions for task in RELEASED if is_caption_task(task)},
}


@dataclass(frozen=True, kw_only=True)
class FileScore:
    """The score of one result file; `notes` are sentences for the reader."""

    task: str
    mode: Mode
    samples: int
    correct: float
    notes: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """Percent, not rounded; its two-decimal form is what the released scripts print.

        Scripts that print `correct / samples * 100` and `100 * correct / samples` can differ in the last place shown.
        """
        if self.task in ("scienceqa", "textvqa", "gqa"):
            return self.correct / self.samples * 100
        return 100 * self.correct / self.samples

    def record(self) -> dict[str, str | int | float]:
        """Plain values for one line of JSON."""
        figures = {"samples": self.samples, "correct": self.correct, "accuracy": self.accuracy}
        return {"task": self.task, "mode": self.mode, **figures}


def read_annotations(task: str, path: Path | None, problems: Path | None, splits: Path | None) -> list[Annotation]:
    """The annotations of a task in its released layout: ScienceQA's from two files, every other task's from one."""
    task = released_task(task)
    if task == "scienceqa":
        if problems is None or splits is None:
            raise ConfigError(
                "scienceqa is scored from --problems problems.json and --splits pid_splits.json; give both."
            )
        return released_files.read_split(problems, splits, TEST_SPLIT)
    if path is None or problems is not None or splits is not None:
        raise ConfigError(f"{task} is scored from --annotations FILE alone; --problems and --splits are scienceqa's.")
    return _READERS.get(task, released_files.read_list)(path)


def score_file(task: str, annotations: Annotations, predictions: Replies, mode: Mode) -> FileScore:
    """Pair, score and add up; raises `DataError` for pairs that the mode does not define and for unreadable records."""
    task = released_task(task)
    if not annotations or not predictions:
        raise DataError(f"There is nothing to score: {len(annotations)} records and {len(predictions)} replies.")
    if is_caption_task(task):
        return _captions(task, annotations, predictions, mode)
    if task.startswith("trace/"):
        pairs, notes = _in_order(annotations, predictions), []
    elif mode == "fixed" or task in COAST:
        pairs, notes = _one_to_one(task, annotations, predictions)
    elif task == "scienceqa":
        pairs, notes = _over_the_split(annotations, predictions)
    elif task == "imagenet":
        pairs, notes = _by_position(annotations, predictions)
    else:
        pairs, notes = _by_id(task, annotations, predictions)
    if not pairs:
        raise DataError(f"No reply is left to score for {task}: none belongs to a balanced question.")
    correct = sum(_score(task, reply, annotation, mode) for reply, annotation in pairs)
    return FileScore(task=task, mode=mode, samples=len(pairs), correct=correct, notes=tuple(notes))


def _score(task: str, reply: str, annotation: Annotation, mode: Mode) -> float:
    try:
        return RELEASED[task].of(mode)(reply, annotation.reference)
    except DataError as error:
        raise DataError(f"Question {annotation.question_id!r}: {error}") from error


def _captions(task: str, annotations: Annotations, predictions: Replies, mode: Mode) -> FileScore:
    """`compat`: the n-th reply against image_id n, the mean of seven; `fixed`: the mean ROUGE-L, without Java."""
    pairs = _in_order(annotations, predictions)
    if mode == "compat":
        by_id = {annotation.question_id: annotation for annotation in annotations}
        missing = next((at for at in range(1, len(pairs) + 1) if at not in by_id), None)
        if missing is not None:
            raise DataError(
                f"The released script takes the n-th reply for image_id n; there is no image_id {missing} in the "
                "annotations."
            )
        pairs = [(text, by_id[at]) for at, (text, _) in enumerate(pairs, start=1)]
    references = [accepted_answers(annotation.reference) for _, annotation in pairs]
    found = caption_figures([text for text, _ in pairs], references, java_home() if mode == "compat" else None)
    notes = [", ".join(f"{name} {value:.2f}" for name, value in found.items())]
    if mode == "compat":
        if MEAN not in found:
            raise DataError(f"The released mean of seven needs METEOR, which runs in Java: {INSTALL}. {notes[0]}.")
        correct = found[MEAN] / 100.0 * len(pairs)
    else:
        correct = sum(_score(task, text, annotation, mode) for text, annotation in pairs)
    return FileScore(task=task, mode=mode, samples=len(pairs), correct=correct, notes=tuple(notes))


def _in_order(annotations: Annotations, predictions: Replies) -> list[Answered]:
    if len(annotations) != len(predictions):
        raise DataError(
            f"There are {len(predictions)} replies to {len(annotations)} records; they are paired by "
            "position, so there must be as many."
        )
    return [(reply.text, record) for reply, record in zip(predictions, annotations, strict=True)]


def _over_the_split(problems: Annotations, predictions: Replies) -> tuple[list[Answered], list[str]]:
    replies: dict[QuestionId | None, str] = {prediction.question_id: prediction.text for prediction in predictions}
    pairs = [(replies.get(problem.question_id, NO_REPLY), problem) for problem in problems]
    ids = {problem.question_id for problem in problems}
    notes = [
        *_note(len(ids - replies.keys()), "Problems of the split without a reply, counted as wrong"),
        *_note(len(replies.keys() - ids), "Replies to no problem of the split, left out"),
        *_note(len(predictions) - len(replies), "Replies left out for a later one with the same id"),
    ]
    return pairs, notes


def _by_position(annotations: Annotations, predictions: Replies) -> tuple[list[Answered], list[str]]:
    if len(predictions) > len(annotations):
        raise DataError(
            f"There are {len(predictions)} replies to {len(annotations)} records; the released script pairs them by "
            "position and cannot score the rest."
        )
    paired = list(zip(predictions, annotations, strict=False))
    notes = [
        *_note(
            sum(reply.question_id != record.question_id for reply, record in paired),
            "Replies paired with a record of another id",
        ),
        *_note(sum(not reply.text for reply, _ in paired), "Empty replies, counted as right"),
        *_note(len(annotations) - len(predictions), "Records at the end without a reply, left out"),
    ]
    return [(reply.text, record) for reply, record in paired], notes


def _by_id(task: str, annotations: Annotations, predictions: Replies) -> tuple[list[Answered], list[str]]:
    key: Callable[[QuestionId], QuestionId] = str if task in _AS_TEXT else lambda same: same
    records: AnnotationsById = {key(_id(record, number)): record for number, record in enumerate(annotations, start=1)}
    found = [(prediction, _record(records, key(prediction.question_id), prediction)) for prediction in predictions]
    answered = {key(prediction.question_id) for prediction in predictions}
    repeated = len(predictions) - len(answered)
    notes = [
        *_note(len(annotations) - len(records), "Records left out for a later one with the same id"),
        *_note(len(records) - len(answered), "Records without a reply, left out"),
    ]
    if task == "gqa":
        found = list({prediction.question_id: (prediction, record) for prediction, record in found}.values())
        found = [(prediction, record) for prediction, record in found if _is_balanced(record)]
        notes += _note(repeated, "Replies left out for a later one with the same id")
        notes += _note(len(answered) - len(found), UNBALANCED)
    else:
        notes += _note(repeated, "Replies that repeat an id, counted again")
    if task == "ocrvqa":
        notes += ["The released script prints this accuracy beside 0 samples."]
    return [(prediction.text, record) for prediction, record in found], notes


def _one_to_one(task: str, annotations: Annotations, predictions: Replies) -> tuple[list[Answered], list[str]]:
    _require_unique("records", (_id(record, number) for number, record in enumerate(annotations, start=1)))
    _require_unique("replies", (prediction.question_id for prediction in predictions))
    records: AnnotationsById = {str(record.question_id): record for record in annotations}
    replies = {str(prediction.question_id): prediction for prediction in predictions}
    for key, prediction in replies.items():
        _record(records, key, prediction)
    notes: list[str] = []
    if task == "gqa":
        records = {key: record for key, record in records.items() if _is_balanced(record)}
        notes += _note(len(replies.keys() - records.keys()), UNBALANCED)
    missing = [key for key in records if key not in replies]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(records)} records have no reply (the first is {missing[0]!r}), and only whole "
            "files are scored so: add the replies, or give the annotations of the part that was asked."
        )
    if task in ("vizwiz", "vqav2"):
        single = sum("answers" not in record.reference for record in records.values())
        notes += _note(single, "Records without ten answers, compared with their single one")
    return [(replies[str(key)].text, record) for key, record in records.items()], notes


def _record(records: AnnotationsById, key: QuestionId, prediction: ReleasedReply) -> Annotation:
    if key not in records:
        raise DataError(
            f"Line {prediction.line} of the replies: question_id {prediction.question_id!r} is in no annotation (whose "
            f"ids look like {next(iter(records))!r})."
        )
    return records[key]


def _id(annotation: Annotation, number: int) -> QuestionId:
    if annotation.question_id is None:
        raise DataError(f'Record {number} of the annotations needs a "question_id"; none was given.')
    return annotation.question_id


def _is_balanced(annotation: Annotation) -> bool:
    balanced = annotation.reference.get("isBalanced")
    if not isinstance(balanced, bool):
        raise DataError(
            f'Question {annotation.question_id!r}: "isBalanced" must be true or false, given: {balanced!r}.'
        )
    return balanced


def _require_unique(what: str, ids: Iterable[QuestionId]) -> None:
    key, count = Counter(map(str, ids)).most_common(1)[0]
    if count > 1:
        raise DataError(f"{count} {what} have the question_id {key!r}; every id must be there once.")


def _note(count: int, what: str) -> list[str]:
    """One line that tells a count, unless it is 0."""
    return [f"{what}: {count}."] if count else []
