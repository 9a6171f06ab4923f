"""DocVQA (single page, task 1): questions about scanned pages of industry documents.

**Get it**: rrc.cvc.uab.es, challenge "DocVQA", after registration: the annotations (`spdocvqa_qas`) and the pictures
(`spdocvqa_images`); the older release held both per part.

    ROOT/DocVQA/{spdocvqa_qas/{train,val}_v1.0*.json, spdocvqa_images/*.png}      or
    ROOT/DocVQA/{train,val}/{PART_v1.0.json, documents/*.png}

Each file: `{"data": [{questionId, question, image: "documents/NAME.png", answers: [...]}, ...]}`.

**Counts** (questions, pictures): train 39,463 (10,194), val 5,349 (1,286), test 5,188 (1,287). **Licence**: the
challenge's terms, for research; the pages come from the UCSF Industry Documents Library. **Metric**: ANLS, threshold
0.5.

**Traps**: test has no answers, so val is the evaluation part. `image` names the folder of the older release. Pages
have 2,000 pixels and more: a model that sees 336 can read little of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import answers_of, below, find, id_of, json_list, roots, text_of
from components.data.benchmarks.spec import Side, TaskSpec
from components.data.problems import Problem

LICENCE = "terms of the DocVQA challenge (research); pages of the UCSF Industry Documents Library"
GET = "rrc.cvc.uab.es, challenge DocVQA, after registration"
LAYOUT = "DocVQA/spdocvqa_qas/{train,val}_v1.0*.json with DocVQA/spdocvqa_images/, or the older DocVQA/{train,val}/"


def read_docvqa(root: Path, task: TaskSpec, side: Side) -> Iterator[RawItem | Problem]:
    """The items of one part; raises `DataError` at once when its file is missing."""
    part = task.part(side).source
    inner = ("spdocvqa_qas/", f"{part}/", "")
    names = [f"{base}{folder}{part}_v1.0*.json" for base in roots("DocVQA", "docvqa") for folder in inner]
    file = find(root, names, LAYOUT)
    base = file.rpartition("/")[0].removesuffix("spdocvqa_qas").removesuffix(part).rstrip("/")

    def parse(number: int, item: dict[str, object]) -> Iterator[RawItem]:
        answers = answers_of(item, "answers")
        name = text_of(item, "image")
        candidates = (name, f"{part}/{name}", f"spdocvqa_images/{PurePosixPath(name).name}")
        yield RawItem(
            item_id=id_of(item, "questionId"),
            turns=question_and_answer("\n".join((text_of(item, "question"), *task.prompts)), answers[0]),
            answers=answers,
            images=tuple(below(base, path) for path in candidates),
        )

    return parsed(file, _numbered(root / file), parse)


def _numbered(path: Path) -> Iterator[tuple[int, object]]:
    """The items of the list under "data", from 1; the file is read when the first is asked for."""
    yield from enumerate(json_list(path, "data"), start=1)
