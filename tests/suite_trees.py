"""Tiny trees in the layouts of the published general suites, whole and without a fault."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from benchmark_trees import picture, put_json, put_picture

from components.data.suites.mme import SUBTASKS

Rows = list[dict[str, object]]


def put_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def put_table(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def stored(name: str) -> dict[str, object]:
    """A picture as tables hold it."""
    return {"bytes": picture(name), "path": name}


def pope(root: Path) -> None:
    """Two questions a setting about one picture."""
    for setting in ("random", "popular", "adversarial"):
        lines = [
            f'{{"question_id": {at}, "image": "COCO_val2014_01.jpg", "text": "Is there a {thing} in the image?", '
            f'"label": "{label}"}}'
            for at, (thing, label) in enumerate((("dog", "yes"), (f"{setting} cat", "no")), start=1)
        ]
        put_lines(root / "POPE" / "output" / "coco" / f"coco_pope_{setting}.json", lines)
    put_picture(root / "val2014" / "COCO_val2014_01.jpg")


def mme(root: Path) -> None:
    """One picture a subtask; artwork and its like keep texts and pictures apart; an empty line at the end."""
    home = root / "MME_Benchmark_release_version" / "MME_Benchmark"
    for subtask in SUBTASKS:
        apart = subtask in ("artwork", "celebrity", "landmark", "posters", "scene")
        lines = ["Is it so? Please answer yes or no.\tYes", "Is it not? Please answer yes or no.\tNo", ""]
        put_lines(home / subtask / ("questions_answers_YN/7.txt" if apart else "7.txt"), lines)
        put_picture(home / subtask / ("images/7.png" if apart else "7.jpg"))


def mmbench(root: Path) -> None:
    """A question in two orders, whose second row names the first one's picture, and one with two choices and a hint."""
    shown = base64.b64encode(picture("mmbench-1.jpg")).decode()
    other = base64.b64encode(picture("mmbench-2.jpg")).decode()
    header = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split"]
    rows = [
        [241, "Which is it?", "nan", "cat", "dog", "cow", "", "B", "identity_reasoning", shown, "x", "dev"],
        [1000241, "Which is it?", "nan", "dog", "cow", "cat", "", "A", "identity_reasoning", "241", "x", "dev"],
        [242, "Is it?", 'A "quoted"\nhint', "True", "False", "nan", "nan", "A", "ocr", other, "x", "dev"],
    ]
    path = root / "MMBench" / "mmbench_dev_20230712.tsv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(header)
        writer.writerows(rows)


def _seed(number: int, data_id: str, **more: object) -> dict[str, object]:
    choices = {f"choice_{letter}": f"option {letter}" for letter in "abcd"}
    return {
        "question_id": str(number),
        "question": f"What {number}?",
        "answer": "C",
        "data_id": data_id,
        **choices,
        **more,
    }


def seed(root: Path) -> None:
    """Two questions about pictures, whose names have no ending, and one about a video."""
    questions = [
        _seed(1, "a_1", data_type="image", question_type_id=1),
        _seed(2, "a_2", data_type="image", question_type_id=5),
        _seed(3, "x.webm", data_type="video", question_type_id=10),
    ]
    kinds = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}
    put_json(root / "SEED-Bench" / "SEED-Bench.json", {"questions": questions, "question_type": kinds})
    for name in ("a_1", "a_2"):
        put_picture(root / "SEED-Bench" / "SEED-Bench-image" / name)


def seed_plus(root: Path) -> None:
    """Two questions about one picture of text."""
    questions = [_seed(at, "text_rich/1.png", question_image_subtype="tree diagram") for at in (1, 2)]
    home = root / "SEED-Bench-2-plus"
    put_json(home / "SEED-Bench-2-plus-text-rich.json", {"questions": questions})
    put_picture(home / "SEED-Bench-2-plus-image" / "text_rich" / "1.png")


def _mmmu(name: str, kind: str, options: str, answer: str, pictures: int = 1) -> dict[str, object]:
    shown = {f"image_{at}": stored(f"{name}-{at}.png") if at <= pictures else None for at in range(1, 8)}
    question = {"id": name, "question": "<image 1> Which?", "options": options, "answer": answer}
    return {**question, "question_type": kind, **shown}


def mmmu(root: Path) -> None:
    """Two subjects: multiple choice, an open question with two answers; a question about two pictures."""
    art = [
        _mmmu("validation_Art_1", "multiple-choice", "['Monet', \"Manet's\"]", "B"),
        _mmmu("validation_Art_2", "multiple-choice", "['a', 'b']", "A", pictures=2),
    ]
    math = [_mmmu("validation_Math_1", "open", "[]", "['24', '25']")]
    for subject, rows in (("Art", art), ("Math", math)):
        table = pa.Table.from_pylist(rows, schema=_mmmu_schema())
        path = root / "MMMU" / subject / "validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table, path)


def _mmmu_schema() -> pa.Schema:
    texts = [(name, pa.string()) for name in ("id", "question", "options", "answer", "question_type")]
    shown = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema([*texts, *((f"image_{at}", shown) for at in range(1, 8))])


def mathvista(root: Path) -> None:
    """A multiple-choice question and a free one."""
    rows: Rows = [
        {
            "pid": "1", "query": "Hint: give the letter.\nQuestion: Which?", "choices": ["two", "three"],
            "answer": "three", "question_type": "multi_choice", "answer_type": "text", "precision": None,
            "decoded_image": stored("1.png"),
        },
        {
            "pid": "2", "query": "Hint: give a number.\nQuestion: How many?", "choices": None,
            "answer": "1.2", "question_type": "free_form", "answer_type": "float", "precision": 2.0,
            "decoded_image": stored("2.png"),
        },
    ]  # fmt: skip
    put_table(root / "MathVista" / "data" / "testmini-00000-of-00001-725687bf7a18d64b.parquet", rows)


def hallusion(root: Path, *, named: str = "./", kept: str = "hallusion_bench") -> None:
    """One question about a figure and its edited twin, and one without and with a figure.

    `named` begins the pictures' names: "./" as in today's list, "./hallusion_bench/" as in the first one; `kept` is the
    folder beside the list that they lie in: the archive's, or "" for copies that have `VD/` and `VS/` there.
    """

    def item(category: str, figure: int, answer: int, *, seen: bool = True) -> dict[str, object]:
        name = f"{named}{category}/chart/0_{figure}.png"
        return {
            "category": category, "subcategory": "chart", "visual_input": "1" if seen else "0", "set_id": "0",
            "figure_id": str(figure), "question_id": "0", "question": f"Is {category} larger?",
            "gt_answer": str(answer), "filename": name if seen else None,
        }  # fmt: skip

    items = [item("VD", 0, 1), item("VD", 1, 0), item("VS", 0, 1, seen=False), item("VS", 1, 0)]
    put_json(root / "HallusionBench" / "HallusionBench.json", items)
    for name in ("VD/chart/0_0", "VD/chart/0_1", "VS/chart/0_1"):
        put_picture(root / "HallusionBench" / kept / f"{name}.png")


def scienceqa(root: Path) -> None:
    """One test question with a picture and one without; one of the training part."""
    home = root / "ScienceQA" / "data" / "scienceqa"
    problem = {"question": "Which?", "choices": ["ice", "steam"], "subject": "natural science", "split": "test"}
    problems = {
        "4": {**problem, "answer": 1, "hint": "Water changes.", "image": "image.png"},
        "5": {**problem, "answer": 0, "hint": "", "image": None},
        "6": {**problem, "answer": 0, "hint": "", "image": None, "split": "train"},
    }
    put_json(home / "problems.json", problems)
    put_json(home / "pid_splits.json", {"train": ["6"], "test": ["4", "5"]})
    put_picture(home / "images" / "test" / "4" / "image.png")


def ocrvqa(root: Path) -> None:
    """A test cover with two questions, and one of the training part."""
    asked = {"questions": ["Who wrote this book?", "What is the genre?"], "answers": ["A. Writer", "Travel"]}
    covers = {"0761183272": {**asked, "split": 3}, "0000000001": {**asked, "split": 1}}
    put_json(root / "OCR-VQA" / "dataset.json", covers)
    put_picture(root / "OCR-VQA" / "images" / "0761183272.jpg")


TREES: dict[str, Callable[[Path], None]] = {
    "pope": pope,
    "mme": mme,
    "mme-release": mme,
    "mmbench": mmbench,
    "seed-bench": seed,
    "seed-bench-2-plus": seed_plus,
    "mmmu": mmmu,
    "mathvista": mathvista,
    "hallusion-bench": hallusion,
    "scienceqa-test": scienceqa,
    "ocr-vqa-test": ocrvqa,
}
