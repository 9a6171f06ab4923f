"""OCR-VQA (ICDAR 2019), test part: title, author, genre, year and edition from book covers.

**Get it**: ocr-vqa.github.io, `dataset.json` and the script that fetches the covers.

    ROOT/[OCR-VQA/]{dataset.json, images/ID.jpg}

`dataset.json`: ID to `questions` and `answers` (lists of equal length), `split` (1 train, 2 validation, 3 test),
`title`, `authorName`, `genre`, `imageURL`.

**Counts**: 207,572 covers and about a million questions, a tenth of them test; our suite takes 2,000, drawn by a hash
of their ids. **Licence**: for research. **Metric**: exact match.

**Traps**: covers are fetched from a shop and some are gone: missing ones are left out and counted. It is also a task of
CoIN.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from components.core.errors import DataError
from components.data.benchmarks.catalogue import SHORT
from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import below, find, id_of, json_file, roots, text_list
from components.data.problems import ItemError, Problem
from components.data.suite import row_id

LICENCE = "for research"
GET = "ocr-vqa.github.io"
LAYOUT = "OCR-VQA/{dataset.json, images/ID.jpg}"
_TEST = 3
_SUFFIXES = (".jpg", ".png", ".gif", ".jpeg")


def read_ocrvqa(root: Path) -> Iterator[RawItem | Problem]:
    """The test part in the file's order; raises `DataError` at once when the file is missing."""
    file = find(root, [f"{base}dataset.json" for base in roots("OCR-VQA", "ocr_vqa", "ocrvqa", "OCRVQA")], LAYOUT)
    table = json_file(root / file)
    if not isinstance(table, dict):
        raise DataError(f"{root / file} is not a JSON object of covers; download it again.")
    covers = ((name, item) for name, item in table.items() if not isinstance(item, dict) or item.get("split") == _TEST)
    named = ({**item, "id": name} if isinstance(item, dict) else item for name, item in covers)
    return parsed(file, enumerate(named, start=1), partial(_parse, file))


def _parse(file: str, number: int, item: dict[str, object]) -> Iterator[RawItem]:
    name, base = id_of(item, "id"), file.rpartition("/")[0]
    questions, answers = text_list(item.get("questions"), "questions"), text_list(item.get("answers"), "answers")
    if len(questions) != len(answers) or not all(text.strip() for text in (*questions, *answers)):
        raise ItemError("wrong field", f"{len(questions)} questions have {len(answers)} answers, or one is empty")
    for at, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
        yield RawItem(
            item_id=row_id("all", name, at),
            turns=question_and_answer(f"{question.strip()}\n{SHORT}", answer.strip()),
            answers=(answer.strip(),),
            images=tuple(below(base, f"images/{name}{suffix}") for suffix in _SUFFIXES),
        )
