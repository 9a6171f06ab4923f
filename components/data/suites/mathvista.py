"""MathVista (2310.02255), testmini: mathematics in pictures.

**Get it**: huggingface.co/datasets/AI4Math/MathVista.

    ROOT/[MathVista/][data/]testmini-*.parquet

Columns: `pid`, `query` (the question with its hint, as the authors ask it), `choices`, `answer` (of a multiple-choice
question the option's words), `question_type` ("multi_choice" or "free_form"), `answer_type` ("integer", "float",
"list" or "text"), `precision` (decimals of a float), `decoded_image`.

**Counts**: 1,000. **Licence**: CC BY-SA 4.0; pictures of their sources. **Figures**: accuracy, and per question type.

**Traps**: the authors have GPT-4 extract the answer from the reply. Here a letter or the words of exactly one option
count, and of a free reply its number, rounded to the question's `precision`. Test answers are not published.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path

from components.data.benchmarks import release
from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.problems import ItemError, Problem
from components.data.suite import row_id

LICENCE = "CC BY-SA 4.0; pictures of their sources"
GET = "huggingface.co/datasets/AI4Math/MathVista"
MAX_PRECISION = 10
LAYOUT = "MathVista/data/testmini-*.parquet"
COLUMNS = ("pid", "query", "choices", "answer", "question_type", "answer_type", "precision", "decoded_image")


def read_mathvista(root: Path) -> Iterator[RawItem | Problem]:
    """All of testmini; raises `DataError` at once when its table is missing."""
    folders = [f"{base}{data}" for base in release.roots("MathVista", "mathvista") for data in ("data/", "")]
    file = release.find(root, [f"{folder}testmini-*.parquet" for folder in folders], LAYOUT)
    return parsed(file, enumerate(release.parquet_rows(root, file, COLUMNS), start=1), _parse)


def _parse(number: int, item: dict[str, object]) -> Iterator[RawItem]:
    kind, answer = release.text_of(item, "question_type"), release.text_of(item, "answer")
    answers: tuple[str, ...] = (answer,)
    if kind == "multi_choice":
        options = release.text_list(item["choices"], "choices")
        if answer not in options or len(options) > len(release.LETTERS):
            raise ItemError("wrong field", f"the answer {answer!r:.60} is not one of the choices")
        answers = (release.LETTERS[options.index(answer)], answer)
    elif release.text_of(item, "answer_type") == "float":
        answers = (_rounded(answer, item["precision"]),)
    yield RawItem(
        item_id=row_id(kind, "all", release.id_of(item, "pid")),
        turns=question_and_answer(release.text_of(item, "query"), answers[0]),
        answers=answers,
        data=release.picture_bytes(item["decoded_image"]),
        metric="choice" if kind == "multi_choice" else "number",
    )


def _rounded(answer: str, precision: object) -> str:
    """The answer with as many decimals as the question's precision: metric "number" rounds replies to those."""
    if not isinstance(precision, int | float) or not 0 <= precision <= MAX_PRECISION:
        raise ItemError(
            "wrong field", f'"precision" of a float must be 0 to {MAX_PRECISION}, this is {precision!r:.60}'
        )
    try:
        return f"{Decimal(answer):.{int(precision)}f}"
    except InvalidOperation as error:
        raise ItemError("wrong field", f"the answer {answer!r:.60} is not a number") from error
