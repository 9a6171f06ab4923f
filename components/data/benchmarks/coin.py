"""CoIN: eight tasks from ten datasets, the founding benchmark of multimodal continual instruction tuning (2403.08350).

**Get it**: the lists from huggingface.co/datasets/Zacks-Chen/CoIN (or LCIA's copy jingyang/CoIN_Refined), the
pictures from COCO 2014, GQA, ImageNet, OCR-VQA, ScienceQA, TextVQA and VizWiz; about 300 GB.

    ROOT/Instructions_Original/TASK/{train.json, test.json | val.json}      val.json: TextVQA, VizWiz, VQAv2
    ROOT/cl_dataset/{COCO2014,GQA,ImageNet_withlabel,OCR-VQA,ScienceQA,TextVQA,VizWiz}/...      or without cl_dataset/

The repository and its followers keep the lists in `playground/Instructions_*`; that is found as well.

**Wordings**: original, one template per kind of answer; diverse, one per task; 10type, ten per task. The folders were
renamed over time; `Instructions_Type2` meant the ten templates in one draft and the diverse ones in another, so it is
not read.

**Orders**: the table's (scienceqa, textvqa, imagenet, gqa, vizwiz, grounding, vqav2, ocrvqa), alphabetical, and the
table's reversed (LCIA).

| task | train | test | |
|---|---|---|---|
| scienceqa | 12,726 | 4,241 | some rows have no picture |
| textvqa | 34,602 | 5,000 (val) | OCR words in the prompt |
| imagenet | 129,833 | 5,050 | the paper's table says 117,715 and 4,600; about 100 classes |
| gqa | 72,140 | 12,578 | several turns a picture |
| vizwiz | 20,523 | 4,319 (val) | the paper counts 8,000 test questions |
| grounding | about 55,885 | 30,969 | RefCOCO, RefCOCO+, RefCOCOg |
| vqav2 | 82,783 | val, not counted | several turns a picture; the paper counts 447,793 test questions |
| ocrvqa | about 165,348 | about 100,032 | |

Users have counted scienceqa, textvqa, imagenet and gqa in the files, raw results give grounding's test; the other
figures are from memory of the paper and of the sources. Those marked "about" or missing are not compared.

**Licence**: CC BY 4.0 for the lists; each picture source has its own.

**Tests**: every published LLaVA figure was measured on a random 4,000 rows of six tasks, ScienceQA and grounding
whole. Which rows is not published: `coin` draws its own 4,000 by rank, `coin-full` keeps all.

**Metric**: iou above one half for grounding, exact for the rest. CoIN's own scripts differ: TextVQA takes the mean
over ten references, ImageNet a substring either way (an empty reply counts as right), grounding drops digits while
reading boxes.

**Traps**: boxes are relative to the picture *padded to a square*. A training item of gqa or vqav2 is a picture with
all its questions, so counts of items are not counts of questions. The short-answer line is the same in gqa, vqav2 and
ocrvqa. Training answers of imagenet end with a period, test answers do not. CoIN starts from Vicuna and a pretrained
projector.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from components.data.benchmarks.llava_lists import list_items
from components.data.benchmarks.raw import RawItem
from components.data.benchmarks.release import find
from components.data.benchmarks.spec import Side, TaskSpec
from components.data.problems import Problem

LICENCE = "CC BY 4.0 (lists); every picture source has its own"
GET = "huggingface.co/datasets/Zacks-Chen/CoIN; pictures from their makers"
LAYOUT = "Instructions_Original/TASK/{train.json, test.json or val.json} with the picture folders in cl_dataset/"
_PICTURES = ("cl_dataset/", "", "CoIN/cl_dataset/", "playground/cl_dataset/")
WORDINGS = {
    "original": (
        "Instructions_Original",
        "Instruction_Original",
        "Instructions_Type1",
        "Instruction_Type1",
        "Instructions",
    ),
    "diverse": ("Instructions_Diverse", "Instruction_Diverse"),
    "10type": ("Instructions_10Type", "Instruction_10Type"),
}


def read_coin(root: Path, task: TaskSpec, side: Side) -> Iterator[RawItem | Problem]:
    """The items of one list; raises `DataError` at once when it is missing."""
    part = f"{task.subset}/{task.part(side).source}"
    roots = ("", "playground/", "CoIN/", "CoIN/playground/")
    file = find(root, [f"{base}{folder}/{part}" for base in roots for folder in WORDINGS[task.variant]], LAYOUT)
    return list_items(root, file, side, lambda image: tuple(f"{base}{image}" for base in _PICTURES))
