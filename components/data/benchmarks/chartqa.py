"""ChartQA: questions about bar, line and pie charts from statistics sites.

**Get it**: the folder `ChartQA Dataset` of github.com/vis-nlp/ChartQA, or the archive
huggingface.co/datasets/ahmed-masry/ChartQA.

    ROOT/ChartQA Dataset/{train,val,test}/{PART_human.json, PART_augmented.json, png/*.png}

Each item: `imgname`, `query`, `label`. The human questions come first, then the generated ones. `tables/` and
`annotations/` are not needed.

**Counts** (questions): train 28,299 (7,398 human, 20,901 generated), val 1,920, test 2,500. **Licence**: GPL-3.0; the
charts belong to the sites they were drawn from. **Metric**: relaxed accuracy, numbers within 5 %.

**Traps**: mirrors write `label` as a list. Items have no id: ours is part, kind and place in the file. COAST's traces
are evaluated on val, and so are ours; ChartQA's own table is of test.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import answers_of, find, roots, text_of
from components.data.benchmarks.spec import Side, TaskSpec
from components.data.formats.json_items import iter_items
from components.data.problems import Problem

LICENCE = "GPL-3.0; the charts belong to the sites they were drawn from"
GET = "github.com/vis-nlp/ChartQA or huggingface.co/datasets/ahmed-masry/ChartQA"
LAYOUT = "ChartQA Dataset/{train,val}/{PART_human.json, PART_augmented.json, png/}"


def read_chartqa(root: Path, task: TaskSpec, side: Side) -> Iterator[RawItem | Problem]:
    """The items of one part; raises `DataError` at once when its files are missing."""
    part = task.part(side).source
    folders = roots("ChartQA Dataset", "ChartQA/ChartQA Dataset", "ChartQA")
    human = find(root, [f"{folder}{part}/{part}_human.json" for folder in folders], LAYOUT)
    generated = find(root, [human.replace("_human.json", "_augmented.json")], LAYOUT)
    return chain.from_iterable(_items(root, file, task) for file in (human, generated))


def _items(root: Path, file: str, task: TaskSpec) -> Iterator[RawItem | Problem]:
    folder, _, name = file.rpartition("/")

    def parse(number: int, item: dict[str, object]) -> Iterator[RawItem]:
        answers = answers_of(item, "label")
        question = "\n".join((text_of(item, "query"), *task.prompts))
        yield RawItem(
            item_id=f"{name.removesuffix('.json')}-{number}",
            turns=question_and_answer(question, answers[0]),
            answers=answers,
            images=(f"{folder}/png/{text_of(item, 'imgname')}",),
        )

    return parsed(file, iter_items(root / file), parse)
