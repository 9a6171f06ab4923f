"""VQACL: VQA v2 in ten tasks by what a question asks for, from recognition to causes (CVPR 2023).

**Get it**: the partition of VQA v2 that the README of github.com/zhangxi1997/VQACL links (Google Drive), and the
training and validation pictures of COCO 2014.

    ROOT/VQACL/datasets/vqa/Partition_Q/karpathy_{train,val,test}_TASK.json
    ROOT/VQACL/datasets/COCO/images/{train2014,val2014}/COCO_{train2014,val2014}_NUMBER.jpg

TASK: q_recognition, q_location, q_judge, q_commonsense, q_count, q_action, q_color, q_type, q_subcategory, q_causal.
Each item: `question_id`, `img_id` (the picture's file name without its ending), `sent` (the question), `answers` (ten
people's, objects with `answer`) and `label` (answers of a fixed vocabulary with their VQA score).

**Order**: as listed. **Counts**: not compared; we found no table of them. Training pictures of the Karpathy split come
from both folders. **Licence**: CC BY 4.0 for VQA v2's questions and answers, from memory of its terms; the partition's
repository states none; pictures as of COCO.

**Metric**: theirs is VQA accuracy, where an answer counts a third for every person who gave it, up to three. Here it is
exact over the answers of three people or more (the most frequent one where there is none), so answers that get part of
a point there are wrong here: a lower bound only.

**Traps**: the README swaps the folders of the VQA v2 and NExT-QA partitions. Some questions have an empty `label`:
their code trains on an empty answer there, while `answers` has one. Their loader leaves out pictures that a map of COCO
object groups does not know, and within a task learns the groups one after another (five, in random order); here
nothing is left out and the groups are mixed. Their models see stored region features, not pictures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import find, id_of, roots, text_of
from components.data.benchmarks.spec import Side, TaskSpec
from components.data.formats.json_items import iter_items
from components.data.problems import ItemError, Problem

LICENCE = "CC BY 4.0 (VQA v2); the partition states none; COCO's terms for pictures"
GET = "the partition that github.com/zhangxi1997/VQACL links; pictures: cocodataset.org, 2014 train and val"
LAYOUT = "VQACL/datasets/vqa/Partition_Q/karpathy_{train,test}_q_TASK.json with VQACL/datasets/COCO/images/"
_IMAGE_ID = re.compile(r"COCO_(train2014|val2014)_\d{12}")
_PEOPLE, _SCORE = 3, 0.9  # who must agree for a whole point of VQA accuracy, and the label that means so


def read_vqacl(root: Path, task: TaskSpec, side: Side) -> Iterator[RawItem | Problem]:
    """The items of one list; `task.prompts` ask for a short answer. Raises `DataError` at once without the list."""
    part = task.part(side).source
    folders = roots("VQACL/datasets", "VQACL", "datasets")
    file = find(root, [f"{folder}vqa/Partition_Q/{part}" for folder in folders], LAYOUT)
    base = file.partition("vqa/Partition_Q/")[0]

    def parse(number: int, item: dict[str, object]) -> Iterator[RawItem]:
        image = text_of(item, "img_id")
        found = _IMAGE_ID.fullmatch(image)
        if found is None:
            raise ItemError("wrong field", f'"img_id" must name a picture of COCO 2014, this is {image!r:.60}')
        answers = _accepted(item)
        candidates = (f"{base}COCO/images/{found[1]}", f"{base}COCO/{found[1]}", f"COCO2014/{found[1]}")
        yield RawItem(
            item_id=id_of(item, "question_id"),
            turns=question_and_answer("\n".join((text_of(item, "sent"), *task.prompts)), answers[0]),
            answers=answers,
            images=tuple(f"{folder}/{image}.jpg" for folder in candidates),
        )

    return parsed(file, iter_items(root / file), parse)


def _accepted(item: dict[str, object]) -> tuple[str, ...]:
    """Answers given by three people or more, the most frequent first; without any, the most frequent answer."""
    given, label = item.get("answers"), item.get("label")
    if isinstance(given, list) and given:
        said = [one.get("answer") if isinstance(one, dict) else one for one in given]
        votes = Counter(text.strip() for text in said if isinstance(text, str) and text.strip())
        ranked = [(text, count >= _PEOPLE) for text, count in votes.most_common()]
    elif isinstance(label, dict):
        scores = {text.strip(): score for text, score in label.items() if isinstance(score, int | float)}
        ranked = [(text, scores[text] >= _SCORE) for text in sorted(scores, key=lambda text: -scores[text]) if text]
    else:
        ranked = []
    if not ranked:
        raise ItemError("empty answer", '"answers" and "label" hold no answer')
    return tuple(text for text, agreed in ranked if agreed) or (ranked[0][0],)
