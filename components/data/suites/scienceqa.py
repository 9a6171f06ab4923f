"""ScienceQA (2209.09513), test part: multiple choice of school science, about half of it with a picture.

**Get it**: scienceqa.github.io.

    ROOT/[ScienceQA/][data/][scienceqa/]{problems.json, pid_splits.json}
    ROOT/[...]/[images/]test/PID/image.png

`problems.json`: PID to `question`, `choices`, `answer` (index), `hint`, `image` (a file name or null), `subject`.

**Counts**: 4,241 test questions, 2,017 of them with a picture. **Licence**: CC BY-NC-SA 4.0. **Figures**: accuracy, and
per subject, and over the questions with a picture (`suite_figures.pictured`), which papers call SQA-IMG.

**Traps**: it is also a task of CoIN. A run that learns it there must not count it as general ability.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from components.core.errors import DataError
from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import answers_of, below, find, id_of, json_file, json_list, roots, text_of
from components.data.problems import Problem
from components.data.suite import PICTURED, row_id
from components.data.suites.choices import lettered

LICENCE = "CC BY-NC-SA 4.0"
GET = "scienceqa.github.io"
LAYOUT = "ScienceQA/data/scienceqa/{problems.json, pid_splits.json} with images/test/PID/image.png"


def read_scienceqa(root: Path) -> Iterator[RawItem | Problem]:
    """The test part in its published order; raises `DataError` at once when a file is missing or broken."""
    folders = roots("ScienceQA/data/scienceqa", "data/scienceqa", "ScienceQA/data", "ScienceQA", "scienceqa", "data")
    problems = find(root, [f"{folder}problems.json" for folder in folders], LAYOUT)
    splits = find(root, [f"{folder}pid_splits.json" for folder in folders], LAYOUT)
    table = json_file(root / problems)
    if not isinstance(table, dict):
        raise DataError(f"{root / problems} is not a JSON object of problems; download it again.")
    asked = [(str(pid), table.get(str(pid))) for pid in json_list(root / splits, "test")]
    numbered = enumerate(({**item, "pid": pid} if isinstance(item, dict) else item for pid, item in asked), start=1)
    return parsed(problems, numbered, partial(_parse, problems))


def _parse(file: str, number: int, item: dict[str, object]) -> Iterator[RawItem]:
    pid, base, hint = id_of(item, "pid"), file.rpartition("/")[0], str(item.get("hint") or "").strip()
    index = id_of(item, "answer")
    question = "\n".join(filter(None, (hint, text_of(item, "question"))))
    prompt, answers = lettered(question, answers_of(item, "choices"), int(index) if index.isdecimal() else -1)
    image = str(item.get("image") or "").strip()
    candidates = [f"{folder}{split}{pid}/{image}" for folder in ("images/", "") for split in ("test/", "")]
    yield RawItem(
        item_id=row_id(text_of(item, "subject"), PICTURED if image else "text", pid),
        turns=question_and_answer(prompt, answers[0]),
        answers=answers,
        images=tuple(below(base, path) for path in candidates) if image else (),
    )
