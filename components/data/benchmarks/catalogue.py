"""The published streams that can be prepared, each pinned to the row by its specification.

COAST's counts are unpublished. Ours take 20,000 training rows and 2,000 test rows of every task, or all where there
are fewer: the domain tasks then weigh about the same (PathVQA has 19,654), and a row of the score matrix stays
affordable. CoIN, UCIT, MLLM-CL, TRACE and VQACL are taken whole, except CoIN's 4,000-row tests
(components/data/benchmarks/coin.py).

Reply lengths: short answers end long before their limit, which only bounds the rambling of an untuned model; 128 is
CoIN's (its script allows ScienceQA 1,024).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from components.data.benchmarks.spec import PartSpec, StreamSpec, TaskSpec

SHORT = "Answer the question using a single word or phrase."  # LLaVA-1.5's line, as CoIN's lists have it
LETTER = "Answer with the option's letter from the given choices directly."  # LLaVA-1.5's too
SHEET = "Below the picture are the choices, from left to right: {}."

COAST_TRAIN, COAST_TEST, COIN_TEST = 20_000, 2_000, 4_000


def _task(name: str, family: str, train: PartSpec, test: PartSpec, metric: str, tokens: int, **more: Any) -> TaskSpec:
    return TaskSpec(name=name, family=family, train=train, test=test, metric=metric, max_new_tokens=tokens, **more)


def _coast(
    name: str, family: str, train: PartSpec, test: PartSpec, metric: str, tokens: int, *prompts: str
) -> TaskSpec:
    train, test = replace(train, use=COAST_TRAIN), replace(test, use=COAST_TEST)
    return _task(name, family, train, test, metric, tokens, prompts=prompts)


_DOMAIN = (
    _coast(
        "chartqa", "chartqa", PartSpec(source="train", published=(28_299,)), PartSpec(source="val", published=(1_920,)),
        "relaxed", 32, SHORT,
    ),
    _coast(
        "docvqa", "docvqa", PartSpec(source="train", published=(39_463,)), PartSpec(source="val", published=(5_349,)),
        "anls", 64, SHORT,
    ),
    _coast(
        "iconqa", "iconqa", PartSpec(source="train", published=(64_462,)),
        PartSpec(source="val", published=(21_489, 21_488)), "exact", 32, SHORT, LETTER, SHEET,
    ),
    _coast(
        "medicalqa", "pathvqa", PartSpec(source="train", published=(19_654,)),
        PartSpec(source="validation", published=(6_259,)), "exact", 32, SHORT,
    ),
)  # fmt: skip


def _capability(name: str, subset: str, metric: str, tokens: int) -> TaskSpec:
    whole = PartSpec(source=f"{subset}.json")
    task = _coast(name, "svit", whole, whole, metric, tokens)
    return replace(task, subset=subset, holdout=20, boxes="picture" if metric == "iou" else "")


_CAPABILITY = (
    _capability("conversation", "conversation", "exact", 256),
    _capability("detail", "detail_description", "exact", 512),
    _capability("reasoning", "complex_reasoning", "exact", 512),
    _capability("referring", "referring_qa", "iou", 256),
)

_COIN_LISTS: dict[str, tuple[str, tuple[int, ...], str, tuple[int, ...]]] = {
    # task: folder, published sizes of train, test list, its published sizes
    "scienceqa": ("ScienceQA", (12_726,), "test.json", (4_241,)),
    "textvqa": ("TextVQA", (34_602,), "val.json", (5_000,)),
    "imagenet": ("ImageNet", (129_833, 117_715), "test.json", (5_050, 4_600)),
    "gqa": ("GQA", (72_140,), "test.json", (12_578,)),
    "vizwiz": ("VizWiz", (20_523,), "val.json", (4_319,)),
    "grounding": ("Grounding", (), "test.json", (30_969,)),
    "vqav2": ("VQAv2", (82_783,), "val.json", ()),
    "ocrvqa": ("OCRVQA", (), "test.json", ()),
}
COIN_ORDER = tuple(_COIN_LISTS)
_TESTED_WHOLE = ("scienceqa", "grounding")


def _coin(name: str, variant: str, *, train_use: int | None = None, test_use: int | None = None) -> TaskSpec:
    folder, train_rows, test_list, test_rows = _COIN_LISTS[name]
    train = PartSpec(source="train.json", use=train_use, published=train_rows)
    test = PartSpec(source=test_list, use=test_use, published=test_rows)
    metric, boxes = ("iou", "square") if name == "grounding" else ("exact", "")
    return _task(name, "coin", train, test, metric, 128, subset=folder, variant=variant, boxes=boxes)


def _coin_streams() -> list[StreamSpec]:
    """Three wordings, three orders, short and full tests: coin[-diverse|-10type][-alphabetical|-reversed][-full]."""
    orders = {"": COIN_ORDER, "-alphabetical": tuple(sorted(COIN_ORDER)), "-reversed": COIN_ORDER[::-1]}
    streams: list[StreamSpec] = []
    for variant, order, full in product(("original", "diverse", "10type"), orders, (False, True)):
        name = f"coin{'' if variant == 'original' else f'-{variant}'}{order}{'-full' if full else ''}"
        tasks = tuple(
            _coin(task, variant, test_use=None if full or task in _TESTED_WHOLE else COIN_TEST)
            for task in orders[order]
        )
        streams.append(StreamSpec(name=name, tasks=tasks))
    return streams


def _ucit(name: str, subset: str, train: str, size: int, tokens: int = 32, variant: str = "") -> TaskSpec:
    parts = PartSpec(source=train, published=(size,)), PartSpec(source="test_3000.json", published=(3_000,))
    metric = "caption" if variant == "captions" else "exact"
    return _task(name, "ucit", *parts, metric, tokens, subset=subset, variant=variant)


_UCIT = (
    _ucit("imagenet-r", "ImageNet-R", "train.json", 23_998),
    _ucit("arxivqa", "ArxivQA", "train_4w.json", 40_000),
    _ucit("vizwiz-caption", "VizWiz", "train.json", 40_000, 128, "captions"),
    _ucit("iconqa", "IconQA", "train.json", 29_859),
    _ucit("clevr-math", "CLEVR", "train_4w.json", 40_000),
    _ucit("flickr30k", "Flickr30k", "train_brief_4w.json", 40_000, 128, "captions"),
)


def _mllm_cl(name: str, train: str, test: str) -> TaskSpec:
    parts = PartSpec(source=f"{train}/train.json"), PartSpec(source=f"{test}/test.json")
    return _task(name, "mllm_cl", *parts, "exact", 128)


def _trace(name: str, subset: str, metric: str, tokens: int) -> TaskSpec:
    parts = PartSpec(source="train.json", published=(5_000,)), PartSpec(source="test.json")
    return _task(name, "trace", *parts, metric, tokens, subset=subset)


_TRACE = (
    _trace("c-stance", "C-STANCE", "exact", 32),
    _trace("fomc", "FOMC", "exact", 32),
    _trace("meetingbank", "MeetingBank", "rouge_l", 512),  # theirs allows every task 512
    _trace("py150", "Py150", "edit", 128),
    _trace("scienceqa", "ScienceQA", "leading_letter", 512),
    _trace("numglue-cm", "NumGLUE-cm", "exact", 32),
    _trace("numglue-ds", "NumGLUE-ds", "exact", 32),
    _trace("20minuten", "20Minuten", "sari", 512),
)

VQACL_ORDER = (
    "recognition", "location", "judge", "commonsense", "count", "action", "color", "type", "subcategory", "causal",
)  # fmt: skip


def _vqacl(name: str) -> TaskSpec:
    train, test = (PartSpec(source=f"karpathy_{side}_q_{name}.json") for side in ("train", "test"))
    return _task(name, "vqacl", train, test, "exact", 32, prompts=(SHORT,))


def _catalogue() -> dict[str, StreamSpec]:
    capability = StreamSpec(name="coast-capability", tasks=_CAPABILITY)
    table_order = ("referring", "detail", "reasoning", "conversation")
    dataset = tuple(_coin(task, "original", train_use=COAST_TRAIN, test_use=COAST_TEST) for task in COIN_ORDER)
    domains = {"remote-sensing": "RS", "medical": "Med", "driving": "AD", "science": "Sci", "finance": "Fin"}
    abilities = {"ocr": "OCR", "math": "Math", "perception": "VP", "gui": "APP"}
    streams = [
        StreamSpec(name="coast-domain", tasks=_DOMAIN),
        capability,
        capability.ordered("coast-capability-table-order", table_order),
        StreamSpec(name="coast-dataset", tasks=dataset),
        *_coin_streams(),
        StreamSpec(name="ucit", tasks=_UCIT),
        StreamSpec(name="mllm-dcl", tasks=tuple(_mllm_cl(name, at, at) for name, at in domains.items())),
        StreamSpec(name="mllm-acl", tasks=tuple(_mllm_cl(name, at, f"{at}_test") for name, at in abilities.items())),
        StreamSpec(name="trace", tasks=_TRACE),
        StreamSpec(name="vqacl", tasks=tuple(_vqacl(name) for name in VQACL_ORDER)),
    ]
    return {stream.name: stream for stream in streams}


BENCHMARKS = _catalogue()
