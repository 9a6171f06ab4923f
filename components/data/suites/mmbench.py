"""MMBench (2307.06281), English development part: multiple choice over twenty abilities, every order of the choices.

**Get it**: `mmbench_dev_20230712.tsv` or `mmbench_dev_en_20231003.tsv` (links at github.com/open-compass/MMBench).

    ROOT/[MMBench/]mmbench_dev*.tsv

Columns: `index`, `question`, `hint`, `A` to `D`, `answer`, `category`, `image` (base64), and `l2-category`, sometimes
`split` or `comment`. A question's other orders of choices are separate rows, each with an index larger by a million.

**Counts**: 4,377 rows (July 2023) or 4,329 (October), over 1,164 questions at most. **Licence**: Apache-2.0 (code and
annotations); pictures of their sources. **Figures**: circular accuracy, and over single rows (`suite_figures.grouped`).

**Traps**: test answers are not published. Some copies store a picture once, and elsewhere the index of
the row that has it. The released evaluation has a language model map free replies to choices; here a letter is looked
for, or the choice's words. Options "nan" are empty ones.
"""

from __future__ import annotations

import base64
import binascii
import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from components.core.errors import DataError
from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import find, roots, text_of
from components.data.problems import ItemError, Problem
from components.data.suite import row_id
from components.data.suites.choices import letter_index, lettered

LICENCE = "Apache-2.0 (annotations); pictures of their sources"
GET = "github.com/open-compass/MMBench"
LAYOUT = "mmbench_dev_20230712.tsv or mmbench_dev_en_20231003.tsv"
COLUMNS = ("index", "question", "A", "B", "answer", "category", "image")
_ORDERS = 1_000_000  # what the index of a question's next order of choices is larger by
_REFERENCE = 64  # characters; a shorter "picture" is the index of the row that holds it
_CELL = 1 << 28  # characters; the default limit of csv is 131,072


def read_mmbench(root: Path) -> Iterator[RawItem | Problem]:
    """All rows of the development part; raises `DataError` at once when it is missing or has other columns."""
    names = ("mmbench_dev_20230712.tsv", "mmbench_dev_en_20231003.tsv")
    file = find(root, [f"{base}{name}" for base in roots("MMBench", "mmbench") for name in names], LAYOUT)
    pictures = {row["index"]: row["image"] for row in _rows(root / file) if len(row["image"] or "") > _REFERENCE}
    return parsed(file, enumerate(_rows(root / file), start=1), partial(_parse, pictures))


def _rows(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as table:
            reader = csv.DictReader(table, delimiter="\t")
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} has no column {missing[0]}; expected are {', '.join(COLUMNS)}.")
            for row in reader:
                yield {name: value or "" for name, value in row.items() if name is not None}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a tab-separated table ({error}).") from error


def _parse(pictures: dict[str, str], number: int, row: dict[str, object]) -> Iterator[RawItem]:
    index = text_of(row, "index")
    if not index.isdecimal():
        raise ItemError("wrong field", f'"index" must be a whole number, this is {index!r:.60}')
    options: list[str] = []
    for letter in "ABCD":
        option = str(row.get(letter) or "").strip()
        if not option or option.casefold() == "nan":
            break
        options.append(option)
    hint = str(row.get("hint") or "").strip()
    question = text_of(row, "question")
    if hint and hint.casefold() not in ("nan", "none"):
        question = f"{hint}\n{question}"
    prompt, answers = lettered(question, options, letter_index(text_of(row, "answer")))
    yield RawItem(
        item_id=row_id(text_of(row, "category"), str(int(index) % _ORDERS), index),
        turns=question_and_answer(prompt, answers[0]),
        answers=answers,
        data=_picture(text_of(row, "image"), pictures),
    )


def _picture(cell: str, pictures: dict[str, str]) -> bytes:
    encoded = pictures.get(cell) if len(cell) <= _REFERENCE else cell
    if encoded is None:
        raise ItemError("missing image", f"no row has the picture {cell!r}")
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ItemError("broken image", f"the picture is not base64 ({error})") from error
