"""POPE (2305.10355): is there such an object in the picture? Yes or no, over pictures of COCO.

**Get it**: the questions from github.com/AoiDragon/POPE (`output/coco`), the pictures from cocodataset.org (val2014).

    ROOT/[POPE/][output/]coco/coco_pope_{random,popular,adversarial}.json      JSON lines, whatever the name says
    ROOT/[coco/]val2014/COCO_val2014_*.jpg

A line: `question_id`, `image`, `text`, `label` ("yes" or "no").

**Counts**: 3,000 questions a setting over 500 pictures; a copy that LLaVA's scripts use has 2,910 random ones.
**Licence**: MIT for the questions; COCO's terms for the pictures. **Figures**: accuracy, precision, recall, F1 of yes,
and the share of yes, per setting and as means (`suite_figures.pope`).

**Traps**: half of the answers are yes, so a model that always says yes has an F1 of 66.7. The released script
takes every reply without "no" or "not" for a yes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from components.data.benchmarks.catalogue import SHORT
from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import find, id_of, roots, text_of
from components.data.formats.json_items import iter_items
from components.data.problems import ItemError, Problem
from components.data.suite import row_id

LICENCE = "MIT (questions); terms of COCO (pictures)"
GET = "github.com/AoiDragon/POPE; pictures: cocodataset.org (val2014)"
LAYOUT = "output/coco/coco_pope_{random,popular,adversarial}.json with the pictures in val2014/"
SETTINGS = ("random", "popular", "adversarial")


def read_pope(root: Path) -> Iterator[RawItem | Problem]:
    """All three settings; raises `DataError` at once when one is missing."""
    folders = roots("POPE/output/coco", "output/coco", "POPE/coco", "coco", "POPE", "pope/coco", "pope")
    files = {name: find(root, [f"{folder}coco_pope_{name}.json" for folder in folders], LAYOUT) for name in SETTINGS}
    return chain.from_iterable(_setting(root, file, name) for name, file in files.items())


def _setting(root: Path, file: str, setting: str) -> Iterator[RawItem | Problem]:
    def parse(number: int, item: dict[str, object]) -> Iterator[RawItem]:
        label, image = text_of(item, "label").casefold(), text_of(item, "image")
        if label not in ("yes", "no"):
            raise ItemError("wrong field", f'"label" must be yes or no, this is {label!r:.60}')
        yield RawItem(
            item_id=row_id(setting, image, id_of(item, "question_id")),
            turns=question_and_answer(f"{text_of(item, 'text')}\n{SHORT}", label),
            answers=(label,),
            images=(f"val2014/{image}", f"coco/val2014/{image}", f"POPE/val2014/{image}", image),
        )

    return parsed(file, iter_items(root / file), parse)
