"""MLLM-CL: continual learning of domains (DCL) and of abilities (ACL), from MR-LoRA (2506.05453).

**Get it**: huggingface.co/datasets/MLLM-CL/MLLM-CL or modelscope.cn/datasets/zhaohongbo/MLLM-CL.

    ROOT/{RS,Med,AD,Sci,Fin}/{images, train.json, test.json}      domains
    ROOT/{OCR,Math,VP,APP}/{images, train.json}, ROOT/{OCR,Math,VP,APP}_test/{images, test.json}      abilities

**Orders**: remote sensing, medical, driving, science, finance; OCR, mathematics, visual perception, GUI agent.
**Counts**: about 60k/10k, 23k/10k, 60k/10k, 33k/8k and 60k/10k (train/test) for the domains, from memory of the paper:
no exact size is compared. **Licence**: Apache-2.0 for the repository; each source has its own. **Metric**: exact match,
except MapQA (the share of listed states, or occurrence) and OCR (occurrence). Published figures follow looser rules,
one for each script, mostly occurrence inside the reply: they are the compat variant (`metrics/released/mllm_cl.py`).

**Traps**: the router and replay lists beside the task folders are not tasks. Ability tests are other benchmarks
(OCRBench, MathVista with an LLM that extracts the answer, CV-Bench, MMT-Bench through a server), so an exact match is
a lower bound there. The published runs train different tasks for different numbers of epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from components.data.benchmarks.llava_lists import list_items
from components.data.benchmarks.raw import RawItem
from components.data.benchmarks.release import find
from components.data.benchmarks.spec import Side, TaskSpec
from components.data.problems import Problem
from components.metrics.released.mllm_cl import CHOICE_PICTURES, FORMULA, LISTED

LICENCE = "Apache-2.0 (repository); every source has its own"
GET = "huggingface.co/datasets/MLLM-CL/MLLM-CL"
# What marks the kinds of rows that the released scripts score differently.
LAYOUT = "{RS,Med,AD,Sci,Fin}/{images, train.json, test.json}, or {OCR,Math,VP,APP}/ and {OCR,Math,VP,APP}_test/"


def read_mllm_cl(root: Path, task: TaskSpec, side: Side) -> Iterator[RawItem | Problem]:
    """The items of one list; raises `DataError` at once when it is missing."""
    names = [f"{base}{task.part(side).source}" for base in ("", "MLLM-CL/", "Domain_data/", "Ability_data/")]
    file = find(root, names, LAYOUT)
    folder = file.rpartition("/")[0]
    metric_of = {"science": _science, "ocr": _ocr}.get(task.name)
    candidates = lambda image: (image, f"{folder}/{image}", f"{folder}/images/{image}")  # noqa: E731
    return list_items(root, file, side, candidates, metric_of=metric_of)


def _science(item: dict[str, object]) -> str:
    """Multiple choice by the letter; MapQA's lists of states by their parts, and its other questions by occurrence."""
    if PurePosixPath(str(item.get("image"))).name.partition("_")[0] in CHOICE_PICTURES:
        return "exact"
    return "recall" if LISTED in str(item.get("text")) else "contains"


def _ocr(item: dict[str, object]) -> str:
    return "formula" if item.get("answer_type") == FORMULA else "contains"
