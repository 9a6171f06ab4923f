"""SEED-Bench (2307.16125), questions about single pictures, and SEED-Bench-2-Plus (2404.16790), pictures full of text.

**Get it**: huggingface.co/datasets/AILab-CVC/SEED-Bench and .../SEED-Bench-2-plus.

    ROOT/[SEED-Bench/]{SEED-Bench.json, SEED-Bench-image/ID}
    ROOT/[SEED-Bench-2-plus/]{SEED-Bench-2-plus-text-rich.json, [SEED-Bench-2-plus-image/]text_rich/N.png}

Each file: `{"questions": [{question_id, question, choice_a ... choice_d, answer, data_id, question_type_id, ...}],
"question_type": {NAME: ID}}`; `data_id` is the picture's file, in SEED-Bench without an ending.

**Counts**: 14,233 questions about pictures (of 19,242; the others ask about videos and are not read); about 2,300 in
2-Plus. **Licence**: CC BY-NC 4.0. **Figures**: accuracy, and per kind of question.

**Traps**: the released code ranks the choices by likelihood instead of reading a letter, so published figures of
the two kinds differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import below, find, id_of, json_file, json_list, roots, text_of
from components.data.problems import Problem
from components.data.suite import row_id
from components.data.suites.choices import letter_index, lettered

LICENCE = "CC BY-NC 4.0"
GET = "huggingface.co/datasets/AILab-CVC/SEED-Bench"
GET_PLUS = "huggingface.co/datasets/AILab-CVC/SEED-Bench-2-plus"
LAYOUT = "SEED-Bench.json with SEED-Bench-image/"
LAYOUT_PLUS = "SEED-Bench-2-plus-text-rich.json with SEED-Bench-2-plus-image/text_rich/"


def read_seed(root: Path) -> Iterator[RawItem | Problem]:
    """SEED-Bench's questions about pictures; raises `DataError` at once when the file is missing."""
    file = find(root, [f"{base}SEED-Bench.json" for base in roots("SEED-Bench", "seed_bench")], LAYOUT)
    kinds = json_file(root / file, "question_type")
    names = {str(number): str(name) for name, number in kinds.items()} if isinstance(kinds, dict) else {}
    questions = enumerate(json_list(root / file, "questions"), start=1)
    asked = (
        (number, item) for number, item in questions if not isinstance(item, dict) or item.get("data_type") != "video"
    )
    return parsed(file, asked, partial(_parse, file, names, "SEED-Bench-image"))


def read_seed_plus(root: Path) -> Iterator[RawItem | Problem]:
    """SEED-Bench-2-Plus; raises `DataError` at once when the file is missing."""
    name = "SEED-Bench-2-plus-text-rich.json"
    file = find(root, [f"{base}{name}" for base in roots("SEED-Bench-2-plus", "SEED-Bench-2-Plus")], LAYOUT_PLUS)
    questions = enumerate(json_list(root / file, "questions"), start=1)
    return parsed(file, questions, partial(_parse, file, {}, "SEED-Bench-2-plus-image"))


def _parse(file: str, kinds: dict[str, str], pictures: str, number: int, item: dict[str, object]) -> Iterator[RawItem]:
    options = [text_of(item, f"choice_{letter}") for letter in "abcd"]
    prompt, answers = lettered(text_of(item, "question"), options, letter_index(text_of(item, "answer")))
    name, base = text_of(item, "data_id"), file.rpartition("/")[0]
    kind = str(item.get("question_type_id", item.get("question_image_type", "all")))
    yield RawItem(
        item_id=row_id(kinds.get(kind, kind), name, id_of(item, "question_id")),
        turns=question_and_answer(prompt, answers[0]),
        answers=answers,
        images=(below(base, f"{pictures}/{name}"), below(base, name)),
    )
