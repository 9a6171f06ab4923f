"""UCIT: six tasks whose pictures LLaVA-1.5 has not been tuned on, from HiDe-LLaVA (2503.12941).

**Get it**: the lists, ImageNet-R and Flickr30k from huggingface.co/datasets/HaiyangGuo/UCIT, the other pictures from
their makers.

    ROOT/instructions/{ArxivQA,CLEVR,Flickr30k,IconQA,ImageNet-R,VizWiz}/{train*.json, test_3000.json}
    ROOT/datasets/{ArxivQA,CLEVR,Flickr30k,IconQA,ImageNet-R,VizWiz}/...
    ROOT/instructions/{VizWiz,Flickr30k}/val_coco_type_3000.json      five references a picture

MCITlib has the task folders in `UCIT/`, with CLEVR-Math, Flickr30k[-cap] and VizWiz[-caption] for the three, the lists
also as `train.json` and `test.json`, and the pictures in `UCIT/datasets/` or in `UCIT/` itself; all of it is found.

**Order**: ImageNet-R, ArxivQA, VizWiz (captions), IconQA, CLEVR-Math, Flickr30k (captions). **Counts** (train):
23,998, 40,000, 40,000, 29,859, 40,000, 40,000; 3,000 test rows each; counted in the files by users. **Licence**: of
the sources. **Metric**: exact match; for captions ROUGE-L over the references, row by row. Theirs for captions is the
mean of BLEU-1 to 4, METEOR, ROUGE-L and CIDEr over the whole file, by pycocoevalcap: that is the compat variant, which
needs Java (extra `captions`); all seven figures are written beside the predictions of a run.

**Traps**: training ids name pictures in VizWiz, CLEVR and Flickr30k, so they repeat (19,441, 613 and 18,368 times);
VizWiz has 1,331 rows twice, word for word; ArxivQA shares 1,258 pictures, but no question, between train and test. The
released caption script never reads picture names, it pairs the n-th reply with picture n: references are joined by name
here and, where no name is known, by position, which the report notes. Methods here start from the instruction-tuned
LLaVA-1.5, unlike CoIN's.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.core.errors import DataError
from components.data.benchmarks.llava_lists import Reference, list_items
from components.data.benchmarks.raw import RawItem
from components.data.benchmarks.release import find
from components.data.benchmarks.spec import Side, TaskSpec
from components.data.formats.json_items import iter_items
from components.data.problems import ItemError, Problem

LICENCE = "of the six sources"
GET = "huggingface.co/datasets/HaiyangGuo/UCIT; some pictures from their makers"
LAYOUT = "instructions/TASK/{train*.json, test_3000.json} or UCIT/TASK/{train.json, test.json}, pictures in datasets/"
_ROOTS = ("instructions/", "UCIT/instructions/", "UCIT/annotations/", "UCIT/", "annotations/", "")
_ALIASES = {"CLEVR": ("CLEVR-Math",), "Flickr30k": ("Flickr30k-cap",), "VizWiz": ("VizWiz-caption", "VizWiz-cap")}
_PICTURES = ("datasets/", "UCIT/datasets/", "UCIT/", "")


def read_ucit(root: Path, task: TaskSpec, side: Side) -> Iterator[RawItem | Problem]:
    """The items of one list; raises `DataError` at once when it, or a caption task's references, are not there."""
    names = (task.subset, *_ALIASES.get(task.subset, ()))
    folders = [f"{base}{name}" for base in _ROOTS for name in names]
    lists = (task.part(side).source, f"{side}.json")
    file = find(root, [f"{folder}/{name}" for folder in folders for name in lists], LAYOUT)

    def candidates(image: str) -> tuple[str, ...]:
        return tuple(f"{base}{image}" for base in _PICTURES)

    if side == "train" or task.variant != "captions":
        return list_items(root, file, side, candidates)
    where = find(root, [f"{folder}/val_coco_type_3000.json" for folder in folders], LAYOUT)
    captions = _captions(root / where)
    pictures = [_picture_of(item) for _, item in iter_items(root / file)]
    if any(name in captions.by_name for name in pictures):
        return list_items(root, file, side, candidates, captions.named)
    if len(pictures) != len(captions.in_order):
        raise DataError(
            f"{root / where} names no picture of {file}, and its {len(captions.in_order):,} pictures cannot be paired "
            f"with {len(pictures):,} rows by their places; download both again."
        )
    return list_items(root, file, side, candidates, captions.placed)


@dataclass(frozen=True, kw_only=True)
class _Captions:
    """Reference captions of a COCO caption file, by picture file name and in the order of its pictures."""

    by_name: Mapping[str, tuple[str, ...]]
    in_order: Sequence[tuple[str, ...]]

    def named(self, _: int, image: str) -> Reference:
        """The references of the picture with that name."""
        name = PurePosixPath(image).name
        return Reference(answers=_some(self.by_name.get(name, ()), f"the picture {name!r:.60}"))

    def placed(self, number: int, _: str) -> Reference:
        """The references of the picture at that position, from 1."""
        note = "the references name no picture of the list, so the row has those at its own place, as in the release"
        return Reference(answers=_some(self.in_order[number - 1], f"picture {number}"), note=("paired by place", note))


def _some(captions: tuple[str, ...], of: str) -> tuple[str, ...]:
    if not captions:
        raise ItemError("empty answer", f"the references have no answer for {of}")
    return captions


def _picture_of(item: object) -> str:
    return PurePosixPath(str(item.get("image"))).name if isinstance(item, dict) else ""


def _captions(path: Path) -> _Captions:
    """The content of a COCO caption file; raises `DataError`. Pictures may lack names, or not be listed at all."""
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
        captions: defaultdict[object, list[str]] = defaultdict(list)
        for annotation in table["annotations"]:
            captions[annotation["image_id"]].append(str(annotation["caption"]).strip())
        names = {image["id"]: str(image.get("file_name", "")) for image in table.get("images", ())}
        ids = list(names) or list(captions)
        if all(isinstance(one, int) for one in ids) and max(ids) - min(ids) == len(ids) - 1:
            ids.sort()  # 1, 2, ...: the numbers are places
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not a COCO caption file with annotations ({error!r:.90}).") from error
    kept = {one: tuple(filter(None, captions[one])) for one in ids}
    by_name = {PurePosixPath(names[one]).name: kept[one] for one in ids if names.get(one)}
    return _Captions(by_name=by_name, in_order=[kept[one] for one in ids])
