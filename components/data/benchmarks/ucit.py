"""UCIT: six tasks whose pictures LLaVA-1.5 has not been tuned on, from HiDe-LLaVA (2503.12941).

**Get it**: the lists, ImageNet-R and Flickr30k from huggingface.co/datasets/HaiyangGuo/UCIT, the other pictures from
their makers.

    ROOT/instructions/{ArxivQA,CLEVR,Flickr30k,IconQA,ImageNet-R,VizWiz}/{train*.json, test_3000.json}
    ROOT/datasets/{ArxivQA,CLEVR,Flickr30k,IconQA,ImageNet-R,VizWiz}/...
    ROOT/instructions/{VizWiz,Flickr30k}/val_coco_type_3000.json      five references a picture

MCITlib keeps the task folders beside `datasets` and writes CLEVR-Math; both are found.

**Order**: ImageNet-R, ArxivQA, VizWiz (captions), IconQA, CLEVR-Math, Flickr30k (captions). **Counts** (train):
23,998, 40,000, 40,000, 29,859, 40,000, 40,000; 3,000 test rows each; counted in the files by users. **Licence**: of
the sources. **Metric**: exact match; captions are scored exactly too, which is a floor and not a result: theirs is
the mean of BLEU-1 to 4, METEOR, ROUGE-L and CIDEr over five references, which we keep as the accepted answers.

**Why no caption metrics yet**: no package was found that has them without Java. pycocoevalcap 1.2 (2020), which the
published figures come from, is a wheel of 104 MB that is mostly Java archives for its tokenizer, METEOR and SPICE, and
states no licence; aac-metrics fetches the same archives at its first use; sacrebleu has BLEU alone and rouge-score
ROUGE alone. Without the tokenizer and METEOR the mean would not be the published figure under any name. The references
are kept, so the predictions of a run can be scored by pycocoevalcap elsewhere.

**Traps**: training ids name pictures in VizWiz, CLEVR and Flickr30k, so they repeat (19,441, 613 and 18,368 times);
VizWiz holds 1,331 rows twice, word for word; ArxivQA shares 1,258 pictures, but no question, between train and test.
Methods here start from the instruction-tuned LLaVA-1.5, unlike CoIN's.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from components.data.benchmarks.layout import find
from components.data.benchmarks.llava_lists import References, list_items
from components.data.benchmarks.raw import RawItem
from components.data.benchmarks.spec import Side, TaskSpec
from components.data.reports import Problem
from components.errors import DataError

LICENCE = "of the six sources"
GET = "huggingface.co/datasets/HaiyangGuo/UCIT; some pictures from their makers"
LAYOUT = "instructions/TASK/{train*.json, test_3000.json} with the pictures in datasets/"
_ALIASES = {"CLEVR": ("CLEVR", "CLEVR-Math")}


def read_ucit(root: Path, task: TaskSpec, side: Side) -> Iterator[RawItem | Problem]:
    """The items of one list; raises `DataError` at the call when it, or a caption task's references, are not there."""
    folders = [f"{home}{name}" for home in ("instructions/", "") for name in _ALIASES.get(task.subset, (task.subset,))]
    file = find(root, [f"{folder}/{task.part(side).source}" for folder in folders], LAYOUT)
    references: References | None = None
    if side == "test" and task.variant == "captions":
        references = _captions(root / find(root, [f"{folder}/val_coco_type_3000.json" for folder in folders], LAYOUT))
    return list_items(root, file, side, lambda image: (f"datasets/{image}", image), references)


def _captions(path: Path) -> References:
    """Reference captions by picture file name, from a COCO caption file."""
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {image["id"]: str(image["file_name"]) for image in table["images"]}
        captions: defaultdict[str, list[str]] = defaultdict(list)
        for annotation in table["annotations"]:
            captions[names[annotation["image_id"]]].append(str(annotation["caption"]).strip())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no COCO caption file with images and annotations ({error!r:.90}).") from error
    return {name: kept for name, given in captions.items() if (kept := tuple(filter(None, given)))}
