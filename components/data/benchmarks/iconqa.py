"""IconQA: questions about diagrams of icons, for children, of three kinds.

**Get it**: iconqa.github.io, `iconqa_data.zip`.

    ROOT/iconqa_data/iconqa/{train,val,test}/{choose_img,choose_txt,fill_in_blank}/ID/{image,choice_*}.png, data.json

`data.json`: `question`, `choices` and the index `answer` (choose_img: file names; choose_txt: words), or a text
`answer` (fill_in_blank). `choose_*` ask for a letter. Of choose_img we make one picture: the choices below the
diagram.

**Counts**: train 64,462 (34,603 choose_img, 18,946 choose_txt, 10,913 fill_in_blank), val and test 21,489 each
(11,535, 6,316, 3,638); one dataset card says 21,488 for val. **Licence**: CC BY-NC-SA 4.0. **Metric**: exact match.

**Traps**: most published uses drop choose_img because a row has one picture (UCIT: 29,859 training rows, all of the
other two kinds). Ids are unique within a kind only, so ours begin with the kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import LETTERS, answers_of, find, roots, text_of
from components.data.benchmarks.spec import Side, TaskSpec
from components.data.problems import ItemError, Problem

LICENCE = "CC BY-NC-SA 4.0"
GET = "iconqa.github.io"
LAYOUT = "iconqa_data/iconqa/{train,val}/{choose_img,choose_txt,fill_in_blank}/ID/{image.png, data.json}"
KINDS = ("choose_img", "choose_txt", "fill_in_blank")


def read_iconqa(root: Path, task: TaskSpec, side: Side) -> Iterator[RawItem | Problem]:
    """The items of one part, kind by kind; `task.prompts` ask for a short answer, for a letter, and explain the sheet.

    Raises `DataError` at once when a kind's folder is not there.
    """
    part = task.part(side).source
    folders = roots("iconqa_data/iconqa", "iconqa", "IconQA/iconqa_data/iconqa")
    found = [find(root, [f"{folder}{part}/{kind}" for folder in folders], LAYOUT) for kind in KINDS]
    return chain.from_iterable(_kind(root, folder, task.prompts) for folder in found)


def _kind(root: Path, folder: str, prompts: tuple[str, ...]) -> Iterator[RawItem | Problem]:
    ids = [entry.name for entry in (root / folder).iterdir() if entry.is_dir()]
    ids.sort(key=lambda name: (len(name), name))  # numbers in their order
    for number, name in enumerate(ids, start=1):
        file = f"{folder}/{name}/data.json"
        parse = partial(_parse, folder, name, prompts)
        yield from parsed(file, [(number, _loaded(root / file))], parse)


def _loaded(path: Path) -> object | ItemError:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        return ItemError("broken JSON", f"data.json is missing or not JSON ({error})")


def _parse(folder: str, name: str, prompts: tuple[str, ...], number: int, item: dict[str, object]) -> Iterator[RawItem]:
    kind = folder.rpartition("/")[2]
    short, letter, sheet = prompts
    question = text_of(item, "question")
    choices: tuple[str, ...] = ()
    if kind == "fill_in_blank":
        answers = answers_of(item, "answer")
        lines = [question, short]
    else:
        choices = answers_of(item, "choices")
        answers = (LETTERS[_index(item, len(choices))],)
        shown = [f"{a}. {c}" for a, c in zip(LETTERS, choices, strict=False)]
        if kind == "choose_img":
            shown = [sheet.format(", ".join(LETTERS[: len(choices)]))]
        lines = [question, *shown, letter]
    yield RawItem(
        item_id=f"{kind}-{name}",
        turns=question_and_answer("\n".join(lines), answers[0]),
        answers=answers,
        images=(f"{folder}/{name}/image.png",),
        choices=tuple(f"{folder}/{name}/{choice}" for choice in choices) if kind == "choose_img" else (),
    )


def _index(item: dict[str, object], count: int) -> int:
    """The right choice, a number from 0 that some files write as text."""
    given = answers_of(item, "answer")[0]
    if not given.isdecimal() or not int(given) < count <= len(LETTERS):
        raise ItemError("wrong field", f'"answer" must be the index of one of {count} choices, this is {given!r}')
    return int(given)
