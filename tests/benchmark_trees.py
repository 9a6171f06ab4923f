"""Tiny trees in the layouts of the published releases, whole and without a fault, and how tests damage them.

Every function writes one release below `root`. Pictures differ in colour by name, so that no two are equal.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from components.data.benchmarks.catalogue import BENCHMARKS
from components.data.benchmarks.spec import StreamSpec, held_out
from components.data.quality.report import ImportReport

HOLDOUT = 20  # of coast-capability
TRAIN_PICTURES = [number for number in range(1, 60) if not held_out(str(number), HOLDOUT)][:4]
TEST_PICTURES = [number for number in range(1, 400) if held_out(str(number), HOLDOUT)][:2]


def picture(name: str, size: tuple[int, int] = (12, 8)) -> bytes:
    """An encoded picture whose colour follows from its name."""
    red, green, blue = hashlib.sha256(name.encode()).digest()[:3]
    file = io.BytesIO()
    Image.new("RGB", size, (red, green, blue)).save(file, "JPEG" if name.endswith(".jpg") else "PNG")
    return file.getvalue()


def put_picture(path: Path, size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture("/".join(path.parts[-5:]), size))


def put_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def talk(*texts: str) -> list[dict[str, str]]:
    """LLaVA turns, human first."""
    return [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(texts)]


def chartqa(root: Path) -> None:
    """3 human and 1 generated training questions, 1 and 1 to validate."""
    home = root / "ChartQA Dataset"
    for part, human, generated in (("train", 3, 1), ("val", 1, 1)):
        for kind, count in (("human", human), ("augmented", generated)):
            names = [f"{part}_{kind}_{at}.png" for at in range(count)]
            items = [
                {"imgname": name, "query": f"How much is {name}?", "label": f"{at}.5"} for at, name in enumerate(names)
            ]
            put_json(home / part / f"{part}_{kind}.json", items)
            for name in names:
                put_picture(home / part / "png" / name)
        (home / part / "tables").mkdir()


def docvqa(root: Path, *, older: bool = False) -> None:
    """3 training questions about 2 pages and 2 to validate, in the challenge's layout of today or the older one."""
    for part, count in (("train", 3), ("val", 2)):
        names = [f"documents/{part}{at % 2}_1.png" for at in range(count)]
        items = [
            {
                "questionId": 1000 * len(part) + at,
                "question": f"What is field {at}?",
                "image": name,
                "answers": [f"Value {at}", f"value {at}"],
                "docId": at,
                "data_split": part,
            }
            for at, name in enumerate(names)
        ]
        version = "v1.0" if older else "v1.0_withQT"
        notes = root / "DocVQA" / (part if older else "spdocvqa_qas")
        pages = root / "DocVQA" / (part if older else "spdocvqa_images")
        put_json(notes / f"{part}_{version}.json", {"dataset_name": "docvqa", "dataset_split": part, "data": items})
        for name in names:
            put_picture(pages / (name if older else Path(name).name))


def iconqa(root: Path) -> None:
    """One question of each kind per part; folder 10 comes after folder 9."""
    for part in ("train", "val"):
        home = root / "iconqa_data" / "iconqa" / part
        for at in ("9", "10"):
            question = {"question": f"How many in {at}?", "answer": at, "ques_type": "fill_in_blank", "grade": "K"}
            put_json(home / "fill_in_blank" / at / "data.json", question)
            put_picture(home / "fill_in_blank" / at / "image.png")
        words = {"question": "Which word?", "choices": ["cat", "dog", "cow"], "answer": 2, "ques_type": "choose_txt"}
        put_json(home / "choose_txt" / "7" / "data.json", words)
        put_picture(home / "choose_txt" / "7" / "image.png")
        shown = {"question": "Which picture?", "choices": ["choice_0.png", "choice_1.png"], "answer": 1}
        put_json(home / "choose_img" / "7" / "data.json", {**shown, "ques_type": "choose_img"})
        put_picture(home / "choose_img" / "7" / "image.png", (40, 10))
        for name in shown["choices"]:
            put_picture(home / "choose_img" / "7" / str(name), (8, 6))


def pathvqa(root: Path) -> None:
    """3 training rows in two files, 2 to validate."""
    for file, at in (("train-00000-of-00002", 0), ("train-00001-of-00002", 2), ("validation-00000-of-00001", 10)):
        count = 1 if at == 2 else 2
        rows = [
            {
                "image": {"bytes": picture(f"{file}-{number}.jpg"), "path": None},
                "question": f"Is tissue {number} seen?",
                "answer": "yes",
            }
            for number in range(at, at + count)
        ]
        path = root / "path-vqa" / "data" / f"{file}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)


def svit(root: Path) -> None:
    """Four files about four training pictures and two held-out ones, in both folders of Visual Genome."""
    pictures = [*TRAIN_PICTURES, *TEST_PICTURES]
    for at, number in enumerate(pictures):
        put_picture(root / "visual_genome" / ("VG_100K", "VG_100K_2")[at % 2] / f"{number}.jpg")
    files = {
        "conversation": lambda n: [
            _said(f"About {n}?", f"It is {n}.", "And more?", "No."),
            _said(f"Else {n}?", "Yes."),
        ],
        "detail_description": lambda n: [_said("Describe it.", f"A picture of {n}.")],
        "complex_reasoning": lambda n: [_said(f"Why {n}?", f"Because of {n}.")],
        "referring_qa": lambda n: [_said(f"What is left of {n}?", "A <st>man<ed> [0.1, 0.2, 0.5, 0.6].")],
    }
    for name, made in files.items():
        items = [{"image_id": number, "conversations": made(number)} for number in pictures]
        put_json(root / "svit" / f"{name}.json", items)


def _said(*texts: str) -> dict[str, object]:
    turns = [{"from": ("user", "gpt")[at % 2], "value": text} for at, text in enumerate(texts)]
    return {"topic": "things", "content": turns}


COIN_TEXTS = {
    "ScienceQA": "Which is it?\nA. this\nB. that\nAnswer with the option's letter from the given choices directly.",
    "Grounding": "Please provide the bounding box coordinate of the region this sentence describes: man",
}


def coin(root: Path, folder: str = "Instructions_Original", *, first: str = "") -> None:
    """Two training and two test items of every task: several turns for GQA and VQAv2, text alone in ScienceQA."""
    for task in ("ScienceQA", "TextVQA", "ImageNet", "GQA", "VizWiz", "Grounding", "VQAv2", "OCRVQA"):
        answer = {"ScienceQA": "A", "Grounding": "[0.10,0.30,0.50,0.60]", "ImageNet": "Castle."}.get(task, "red")
        text = first + COIN_TEXTS.get(
            task, f"What is this of {task}?\nAnswer the question using a single word or phrase."
        )
        more = ("And this?", "blue") if task in ("GQA", "VQAv2") else ()
        names = [f"{task}/images/{at}.jpg" for at in range(4)]
        train = [
            {"id": f"{task}-{at}", "image": name, "conversations": talk(f"<image>\n{text} {at}", answer, *more)}
            for at, name in enumerate(names[:2])
        ]
        test = [
            {"question_id": f"{task}-{at}", "image": f"./{name}", "text": f"{text} {at}", "answer": answer.rstrip(".")}
            for at, name in enumerate(names[2:])
        ]
        if task == "ScienceQA":
            train[1] = {"id": "ScienceQA-1", "conversations": talk(f"{text} 1", answer)}
            test[1] = {"question_id": "ScienceQA-1", "text": f"{text} 3", "answer": answer}
        if task == "Grounding":
            test = [{**item, "answer": "man", "answer_bbox": answer, "size": [12, 8]} for item in test]
        tested = "val.json" if task in ("TextVQA", "VizWiz", "VQAv2") else "test.json"
        put_json(root / folder / task / "train.json", train)
        put_json(root / folder / task / tested, test)
        for name in names:
            put_picture(root / "cl_dataset" / name)


def ucit(root: Path) -> None:
    """Two training and two test items a task; VizWiz and Flickr30k repeat ids and have five references a picture."""
    trains = {
        "ImageNet-R": "train.json", "ArxivQA": "train_4w.json", "VizWiz": "train.json", "IconQA": "train.json",
        "CLEVR": "train_4w.json", "Flickr30k": "train_brief_4w.json",
    }  # fmt: skip
    for task, name in trains.items():
        captions = task in ("VizWiz", "Flickr30k")
        images = [f"{task}/train/{at}.jpg" for at in range(2)] + [f"{task}/val/{at}.jpg" for at in range(2)]
        key = "question_id" if captions else "id"
        train = [
            {
                key: "7" if captions else str(at),
                "image": images[at],
                "conversations": talk("<image>\nWhat?", f"thing {at}"),
            }
            for at in range(2)
        ]
        test = [{"question_id": at, "image": images[2 + at], "text": "What?", "answer": f"one {at}"} for at in range(2)]
        put_json(root / "instructions" / task / name, train)
        put_json(root / "instructions" / task / "test_3000.json", test)
        if captions:
            put_json(root / "instructions" / task / "val_coco_type_3000.json", _captions(images[2:]))
        for image in images:
            put_picture(root / "datasets" / image)


def _captions(images: Sequence[str]) -> dict[str, object]:
    numbered = list(enumerate(images, start=1))
    notes = [
        {"id": 5 * at + k, "image_id": at, "caption": f"caption {k} of {at}"} for at, _ in numbered for k in range(5)
    ]
    return {"images": [{"id": at, "file_name": Path(name).name} for at, name in numbered], "annotations": notes}


def mllm_cl(root: Path) -> None:
    """The five domains, pictures named with and without their folder."""
    for task in ("RS", "Med", "AD", "Sci", "Fin"):
        for side, count in (("train", 2), ("test", 1)):
            _mllm_cl_list(root, task, side, count)


def mllm_cl_abilities(root: Path) -> None:
    """The four abilities, whose tests lie in folders of their own."""
    for task in ("OCR", "Math", "VP", "APP"):
        _mllm_cl_list(root, task, "train", 2)
        _mllm_cl_list(root, f"{task}_test", "test", 2)


def _mllm_cl_list(root: Path, folder: str, side: str, count: int) -> None:
    names = [f"{side}{at}.png" for at in range(count)]
    items = [
        {
            "id": f"{side}{at}",
            "image": f"{folder}/images/{name}" if at else name,
            "conversations": talk("What?", "it"),
        }
        for at, name in enumerate(names)
    ]
    put_json(root / folder / f"{side}.json", items)
    for name in names:
        put_picture(root / folder / "images" / name)


def trace(root: Path) -> None:
    """Three training and two test items a task; of Py150 with several lines, of C-STANCE in Chinese."""
    answers = {"C-STANCE": "支持", "Py150": "import os", "ScienceQA": "A\nBecause it is so."}
    for task in ("C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten"):
        for part, count in (("train", 3), ("eval", 1), ("test", 2)):
            items = [
                {"prompt": f"What of {part} {at} of {task}?\nAnswer:", "answer": answers.get(task, str(at))}
                for at in range(count)
            ]
            put_json(root / "TRACE-Benchmark/LLM-CL-Benchmark_5000" / task / f"{part}.json", items)


def vqacl(root: Path) -> None:
    """Two training questions about one picture and a test question a task, each answered by ten people."""
    home = root / "VQACL" / "datasets"
    tasks = (
        "recognition",
        "location",
        "judge",
        "commonsense",
        "count",
        "action",
        "color",
        "type",
        "subcategory",
        "causal",
    )
    for at, task in enumerate(tasks):
        for part, folder, count in (("train", "train2014", 2), ("test", "val2014", 1)):
            image = f"COCO_{folder}_{at:012}"
            items = [
                {
                    "question_id": 1000 * at + 10 * count + number,
                    "img_id": image,
                    "sent": f"What is {number} of {task} in {part}?",
                    "question_type": "what is",
                    "label": {"red": 1, "blue": 0.9, "green": 0.6},
                    "answers": [
                        {"answer": word, "answer_confidence": "yes", "answer_id": place}
                        for place, word in enumerate(["green"] * 2 + ["blue"] * 3 + ["red"] * 5, start=1)
                    ],
                }
                for number in range(count)
            ]
            put_json(home / "vqa" / "Partition_Q" / f"karpathy_{part}_q_{task}.json", items)
            put_picture(home / "COCO" / "images" / folder / f"{image}.jpg")


def only(stream: str, *tasks: str) -> StreamSpec:
    """Some tasks of a published stream, sizes not compared."""
    free = [
        replace(
            task, train=replace(task.train, use=None, published=()), test=replace(task.test, use=None, published=())
        )
        for task in BENCHMARKS[stream].tasks
        if task.name in tasks
    ]
    return StreamSpec(name=stream, tasks=tuple(free))


def edit(path: Path, change: Callable[[list[dict[str, object]]], object]) -> None:
    """Change the items of a JSON list in place."""
    items = json.loads(path.read_text())
    change(items)
    put_json(path, items)


def faults(report: ImportReport) -> dict[tuple[str, str], dict[str, int]]:
    """Kinds and numbers of what was found, by task and split."""
    found = {(file.task, file.split): dict(file.counts + file.notes) for file in report.files}
    return {where: kinds for where, kinds in found.items() if kinds}
