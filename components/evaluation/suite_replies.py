"""Score a model's replies to a general suite, read from the release's own file formats: by our metrics and by its rule.

Replies are matched by the fields of their record (ids; for POPE and MME also picture and question), never by position
alone. Replies that match no row and rows without a reply are counted; the latter are an error unless `missing` says how
to treat them.
No picture is opened.

| suite | records |
| --- | --- |
| pope | `question_id` and `answer` or `text`, the setting in the file's name or in `category`; without ids in the order of the questions, each with its `question` if there is one; LLaVA's one file with its question file |
| mme | SUBTASK.txt: picture, question, answer and reply with tabs between; or `question_id` SUBTASK/PICTURE and `prompt` |
| mmbench | `index` or `question_id` and `prediction` or `text`, as JSON, JSON lines or a table |
| seed-bench | `question_id` and `prediction` or `text` |
| mmmu | an object of replies by id, or objects with `id` and `response` |
| mathvista | an object by `pid` of objects with `response`, and with `extraction` for the released rule |
| scienceqa-test | `question_id` and `text`; or an object with `outputs`, texts by id |
| hallusion-bench | the released items with `model_prediction` |
| ocr-vqa-test | `question_id` COVER_NUMBER (from 1); or `image` and `prompt` |
"""  # noqa: E501

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, cast, get_args

from components.core.errors import ConfigError, DataError
from components.data.benchmarks.catalogue import SHORT
from components.data.benchmarks.raw import RawItem
from components.data.benchmarks.sampling import distinct
from components.data.suite import PICTURED, group_of, row_id, subset_of
from components.data.suites.catalogue import SUITES
from components.data.suites.pope import SETTINGS
from components.evaluation.predictions import Prediction
from components.evaluation.released_files import file_text, json_object, json_value
from components.evaluation.suite_figures import SuiteFigures, figures
from components.metrics import score
from components.metrics.released.references import shown
from components.metrics.released.suites import suite_score

Missing = Literal["refuse", "wrong", "leave_out"]
JsonObject = Mapping[str, object]
_TEXTS = ("response", "prediction", "model_prediction", "output", "pred", "text")
_POLITE = re.compile(r"\s*Please answer yes or no\.?\s*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SuiteReply:
    """One reply: its position in the files, the names by which its row is looked up (first match), and its text."""

    place: str
    keys: tuple[str, ...]
    text: str
    extracted: str | None = None
    """The answer that the release's language model found in the reply; the released rule then looks at this."""


@dataclass(frozen=True, kw_only=True)
class SuiteScore:
    """A suite's figures, and how many rows are right by our metric and by the release's rule (None without one)."""

    suite: str
    samples: int
    correct: float
    compat: float | None
    pictured: tuple[int, float, float | None] | None
    """Of the rows with a picture, in a suite that tells: their number and the same two sums."""
    figures: SuiteFigures
    notes: tuple[str, ...]

    def record(self) -> dict[str, object]:
        """Plain values for one line of JSON."""
        return {
            "suite": self.suite,
            "samples": self.samples,
            "correct": self.correct,
            "compat_correct": self.compat,
            "figures": dict(self.figures),
        }


def score_suite(
    suite: str, root: Path, files: Sequence[Path], *, questions: Path | None = None, missing: Missing = "refuse"
) -> SuiteScore:
    """Read the release below `root` and the replies of `files` (folders stand for their files), pair and score them.

    `questions` maps each `question_id` to its question (LLaVA's llava_pope_test.jsonl). `missing`: how to treat a row
    without a reply. Raises `ConfigError` for an unknown suite, `DataError` for files that do not fit.
    """
    if suite not in SUITES:
        raise ConfigError(f"There is no suite {suite!r}; allowed are {', '.join(SUITES)}.")
    items = [item for item in distinct(SUITES[suite].read(root)) if isinstance(item, RawItem)]
    asked = _questions(questions) if questions is not None else {}
    replies = [reply for file in _listed(files) for reply in _replies(suite, file, asked)]
    if not items or not replies:
        raise DataError(f"There is nothing to score: {len(items)} rows of {suite} and {len(replies)} replies.")
    found, notes = _paired(suite, items, replies, missing)
    rows = [_scored(suite, item, reply) for item, reply in found]
    seen = [row for row in rows if group_of(row.sample_id).rpartition("/")[2] == PICTURED]
    return SuiteScore(
        suite=suite,
        samples=len(rows),
        correct=sum(row.score for row in rows),
        compat=_compat(rows),
        pictured=(len(seen), sum(row.score for row in seen), _compat(seen)) if seen else None,
        figures=figures(SUITES[suite].scoring, rows),
        notes=tuple(notes),
    )


def _scored(suite: str, item: RawItem, reply: SuiteReply | None) -> Prediction:
    text = "" if reply is None else reply.text
    read = text if reply is None or reply.extracted is None else reply.extracted
    prompt, metric = item.turns[0].text, item.metric or SUITES[suite].metric
    return Prediction(
        after="",
        task=suite,
        sample_id=item.item_id,
        prediction=text,
        answers=item.answers,
        score=score(metric, text, item.answers, prompt),
        metric=metric,
        compat_score=suite_score(suite, read, item.answers, prompt, metric),
    )


def _compat(rows: Sequence[Prediction]) -> float | None:
    values = [row.compat_score for row in rows if row.compat_score is not None]
    return sum(values) if len(values) == len(rows) else None


# ---- pairing


def _paired(
    suite: str, items: Sequence[RawItem], replies: Sequence[SuiteReply], missing: Missing
) -> tuple[list[tuple[RawItem, SuiteReply | None]], list[str]]:
    if missing not in get_args(Missing):
        raise ConfigError(f"missing is {missing!r}; allowed are {', '.join(get_args(Missing))}.")
    names = Counter(name for item in items for name in dict.fromkeys(_names(suite, item)))
    rows = {name: item for item in items for name in _names(suite, item) if names[name] == 1}
    given: dict[str, SuiteReply] = {}
    strangers: list[SuiteReply] = []
    for reply in replies:
        row = next((rows[key] for key in reply.keys if key in rows), None)
        if row is None:
            strangers.append(reply)
        elif row.item_id in given:
            raise DataError(
                f"{reply.place} is a second reply to {row.item_id} (the first: {given[row.item_id].place}); every row "
                "has one."
            )
        else:
            given[row.item_id] = reply
    silent = [item for item in items if item.item_id not in given]
    if not given:
        named, wanted = (" or ".join(keys) or "nothing" for keys in (strangers[0].keys, _names(suite, items[0])))
        raise DataError(f"No reply fits a row of {suite}: {strangers[0].place} names {named}, rows are named {wanted}.")
    if silent and missing == "refuse":
        raise DataError(
            f"{len(silent)} of {len(items)} rows of {suite} have no reply (the first is {silent[0].item_id} of "
            f"{silent[0].file}); give the rest, or say --missing wrong or --missing leave_out."
        )
    notes: list[str] = []
    if strangers:
        notes.append(f"Replies to no row of the release, left out: {len(strangers)} (the first: {strangers[0].place}).")
    if silent:
        notes.append(
            f"Rows without a reply, {'counted as wrong' if missing == 'wrong' else 'left out'}: {len(silent)}."
        )
    kept = [item for item in items if item.item_id in given or missing == "wrong"]
    return [(item, given.get(item.item_id)) for item in kept], notes


def _names(suite: str, item: RawItem) -> list[str]:
    """What a row may be called by replies: its whole id, what its release calls it, and picture and question."""
    subset, group = subset_of(item.item_id), group_of(item.item_id).partition("/")[2]
    last, question = item.item_id.rpartition("/")[2], _asked(item.turns[0].text)
    if suite == "pope":
        place = f"{subset}#{item.number}"
        return [item.item_id, f"{subset}:{last}", f"{subset}/{group}|{question}", place, f"{place}|{question}"]
    if suite in ("mme", "mme-release"):
        return [item.item_id, f"{subset}/{group}|{question}"]
    released = {"mmmu": group, "ocr-vqa-test": f"{group}_{last}"}.get(suite, last)
    return [item.item_id, released, f"{group}|{question}"]


def _asked(text: str) -> str:
    """The question alone, without the lines that ask for a form."""
    text = text.replace("<image>", "").strip()
    for line in (f"\n{SHORT}", SHORT):
        text = text.removesuffix(line)
    return " ".join(_POLITE.sub("", text).split())


# ---- reading


def _listed(files: Sequence[Path]) -> Iterator[Path]:
    for path in files:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
        if not inside:
            raise DataError(f"{path} contains no files of replies.")
        yield from inside


def _replies(suite: str, path: Path, asked: Mapping[str, JsonObject]) -> Iterator[SuiteReply]:
    """The replies of one file. A record without a text is a `DataError` that names its place."""
    keys = KEYS.get(suite, _by_id)
    for number, (place, record) in enumerate(_records(suite, path), start=1):
        question = asked.get(str(record.get("question_id")), {})
        name = _reply_in(suite, record)
        value = record[name] if name is not None else None
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise DataError(f"{place} needs a reply as a text in {' or '.join(_TEXTS)}, given: {shown(value)}.")
        extraction = record.get("extraction")
        yield SuiteReply(
            place=place,
            keys=tuple(keys({**record, **question, "text": value} if question else record, path, number)),
            text=str(value),
            extracted=str(extraction) if extraction is not None else None,
        )


def _reply_in(suite: str, record: JsonObject) -> str | None:
    """The field that holds the reply: `text` may be the question where another one has it; POPE's `answer` is the right
    one where another field has the reply."""
    names: list[str] = [*_TEXTS]
    if suite == "pope":
        told = record.get("prompt", record.get("question")) is not None
        names.insert(len(names) if told else names.index("text"), "answer")
    return next((name for name in names if record.get(name) is not None), None)


def _records(suite: str, path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Objects of a file and where they stand: tab-separated text, a table, JSON, or JSON lines."""
    text = file_text(path)
    plain = PurePosixPath(path.name.removesuffix(".gz"))
    if suite.startswith("mme") and plain.suffix == ".txt":
        yield from _mme_lines(path, plain.stem, text)
    elif plain.suffix in (".tsv", ".csv"):
        yield from _table_rows(path, text, "\t" if plain.suffix == ".tsv" else ",")
    elif (whole := _whole_json(text)) is not None:
        yield from _json_records(path, whole)
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                place = f"{path} line {number}"
                yield place, json_object(json_value(line, place), place)


def _table_rows(path: Path, text: str, sign: str) -> Iterator[tuple[str, JsonObject]]:
    csv.field_size_limit(1 << 28)
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), delimiter=sign), start=1):
            if None in row:
                raise DataError(f"{path} row {number} has more cells than the table has columns; quote its texts.")
            yield f"{path} row {number}", row
    except csv.Error as error:
        raise DataError(f"{path} is not a table ({error}).") from error


def _whole_json(text: str) -> object | None:
    """The one JSON value that a text is, if it is a list, or an object that is no single reply; else None."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(whole, dict) and any(isinstance(whole.get(name), str) for name in (*_TEXTS, "answer")):
        return None  # one line of JSON lines
    return whole if isinstance(whole, list | dict) else None


def _json_records(path: Path, whole: object) -> Iterator[tuple[str, JsonObject]]:
    if isinstance(whole, list):
        for number, record in enumerate(whole, start=1):
            yield f"{path} record {number}", json_object(record, f"{path} record {number}")
        return
    table = cast("dict[str, object]", whole)
    outputs = table.get("outputs")
    for key, value in (cast("dict[str, object]", outputs) if isinstance(outputs, dict) else table).items():
        record = value if isinstance(value, dict) else {"text": value}
        yield f"{path} {key!r}", {"question_id": key, **cast("JsonObject", record)}


def _mme_lines(path: Path, subtask: str, text: str) -> Iterator[tuple[str, JsonObject]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        parts = line.rstrip("\r").split("\t")
        if len(parts) != 4:
            raise DataError(
                f"{path} line {number} must be picture, question, answer, reply between tabs, given: {shown(line)}."
            )
        picture, question, _, reply = parts
        yield f"{path} line {number}", {"question_id": f"{subtask}/{picture}", "prompt": question, "text": reply}


def _questions(path: Path) -> dict[str, JsonObject]:
    """Questions by id: JSON lines or a list of objects with `question_id`, `image`, `text` and `category`."""
    found: dict[str, JsonObject] = {}
    for place, record in _records("", path):
        if record.get("question_id") is None:
            raise DataError(f'{place} needs a "question_id".')
        kept = {name: record[name] for name in ("image", "category") if name in record}
        found[str(record["question_id"])] = {**kept, "prompt": record.get("text", "")}
    return found


# ---- by which names a record's row is found


def _by_id(record: JsonObject, path: Path, number: int) -> Iterator[str]:
    for name in ("question_id", "id", "index", "pid", "No"):
        if record.get(name) is not None:
            yield str(record[name])
    yield from _by_picture(record)


def _by_picture(record: JsonObject) -> Iterator[str]:
    image, prompt = record.get("image"), record.get("prompt", record.get("question"))
    if isinstance(image, str) and isinstance(prompt, str):
        name = PurePosixPath(image)
        yield from (f"{one}|{_asked(prompt)}" for one in (name.name, name.stem))


def _of_pope(record: JsonObject, path: Path, number: int) -> Iterator[str]:
    told = str(record.get("category") or path.name)
    settings = [setting for setting in SETTINGS if setting in told]
    if len(settings) != 1:
        return
    for key in _by_picture(record):
        yield f"{settings[0]}/{key}"
    if record.get("image") is not None:
        return  # its id belongs to another list
    if record.get("question_id") is not None:
        yield f"{settings[0]}:{record['question_id']}"
    else:
        asked = record.get("question")
        yield f"{settings[0]}#{number}|{_asked(asked)}" if isinstance(asked, str) else f"{settings[0]}#{number}"


def _of_mme(record: JsonObject, path: Path, number: int) -> Iterator[str]:
    subtask, _, picture = str(record.get("question_id", "")).rpartition("/")
    prompt = str(record.get("prompt", ""))
    yield f"{PurePosixPath(subtask).name}/{PurePosixPath(picture).stem}|{_asked(prompt)}"


def _of_hallusion(record: JsonObject, path: Path, number: int) -> Iterator[str]:
    parts = [str(record.get(name, "")) for name in ("category", "subcategory", "set_id", "figure_id", "question_id")]
    yield row_id(parts[0], f"{parts[1]}_{parts[2]}", f"{parts[3]}-{parts[4]}")


KEYS: dict[str, Callable[[JsonObject, Path, int], Iterator[str]]] = {
    "pope": _of_pope,
    "mme": _of_mme,
    "mme-release": _of_mme,
    "hallusion-bench": _of_hallusion,
}
