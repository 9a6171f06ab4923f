"""MMMU (2311.16502), validation part: college-level questions of thirty subjects, one picture each.

**Get it**: huggingface.co/datasets/MMMU/MMMU.

    ROOT/[MMMU/]SUBJECT/validation-*.parquet

Columns: `id`, `question`, `options` (a list written as text), `answer` (a letter; open questions: a text or a list
written as text), `question_type` ("multiple-choice" or "open"), `image_1` to `image_7`.

**Counts**: 900 questions, 30 a subject. **Licence**: Apache-2.0; pictures of their sources. **Figures**: accuracy, and
per subject.

**Traps**: a row here has one picture, so questions about several are left out and counted in the report: the figure is
not the published one. `<image 1>` in texts marks the picture's position and is dropped. Open questions are scored by
the number a reply gives, or by the answer's words in it; the released script looks for the answer anywhere, and guesses
a letter where it finds none.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from components.core.errors import DataError
from components.data.benchmarks.catalogue import SHORT
from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import parquet_rows, picture_bytes, roots, text_list, text_of
from components.data.problems import ItemError, Problem
from components.data.suite import row_id
from components.data.suites.choices import letter_index, lettered

LICENCE = "Apache-2.0; pictures of their sources"
GET = "huggingface.co/datasets/MMMU/MMMU"
BY_RULE = frozenset({"too many images"})  # a row has one picture
LAYOUT = "MMMU/SUBJECT/validation-*.parquet"
_PICTURES = tuple(f"image_{number}" for number in range(1, 8))
COLUMNS = ("id", "question", "options", "answer", "question_type", *_PICTURES)
_MARK = re.compile(r"<image \d+>")


def read_mmmu(root: Path) -> Iterator[RawItem | Problem]:
    """All subjects in alphabetical order; raises `DataError` at once when there are none."""
    for base in roots("MMMU", "mmmu"):
        files = sorted(path.relative_to(root).as_posix() for path in (root / base).glob("*/validation-*.parquet"))
        if files:
            return chain.from_iterable(
                parsed(file, enumerate(parquet_rows(root, file, COLUMNS), start=1), partial(_parse, file))
                for file in files
            )
    raise DataError(f"{root} has no validation table of MMMU; expected is {LAYOUT}.")


def _parse(file: str, number: int, item: dict[str, object]) -> Iterator[RawItem]:
    given = [item[name] for name in _PICTURES if item[name] is not None]
    if len(given) != 1:
        raise ItemError("too many images", f"a row has one picture, this question has {len(given)}")
    question = _MARK.sub("", text_of(item, "question")).strip()
    if text_of(item, "question_type") == "multiple-choice":
        options = text_list(_literal(text_of(item, "options")), "options")
        if any(_MARK.search(option) for option in options):
            raise ItemError("too many images", "the options are pictures")
        prompt, answers = lettered(question, options, letter_index(text_of(item, "answer")))
        metric = "choice"
    else:
        answer = text_of(item, "answer")
        answers = tuple(text_list(_literal(answer), "answer")) if answer.startswith("[") else (answer,)
        prompt, metric = f"{question}\n{SHORT}", "number"
    yield RawItem(
        item_id=row_id(file.split("/")[-2], text_of(item, "id"), number),
        turns=question_and_answer(prompt, answers[0]),
        answers=answers,
        data=picture_bytes(given[0]),
        metric=metric,
    )


def _literal(text: str) -> object:
    """A list written as Python text; only literals are read, nothing is run."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError) as error:
        raise ItemError("wrong field", f"this is not a list: {text!r:.60}") from error
