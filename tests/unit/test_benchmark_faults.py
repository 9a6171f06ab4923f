"""Damaged releases: every planted fault is named with its file and row, and nothing outside the root is read."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import benchmark_trees as trees
import pytest
from PIL import Image
from rich.console import Console

from components.core.errors import DataError
from components.data.benchmarks.preparing import prepare_benchmark
from components.data.prepared import open_prepared
from pipelines.prepare import Prepare, prepare

TRAIN = "ChartQA Dataset/train/train_human.json"


CHARTS = trees.only("coast-domain", "chartqa")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A whole ChartQA: 4 training rows, 2 to validate."""
    trees.chartqa(tmp_path / "downloads")
    return tmp_path / "downloads"


CHANGES: list[tuple[str, dict[str, object], str, str]] = [
    ("no answer", {"label": None}, "empty answer", "label"),
    ("empty answer", {"label": "  "}, "empty answer", "has no answer"),
    ("empty list", {"label": []}, "empty answer", "has no answer"),
    ("no question", {"query": ""}, "wrong field", '"query"'),
    ("image of a wrong kind", {"imgname": 7}, "wrong field", '"imgname"'),
    ("missing image", {"imgname": "none.png"}, "missing image", "none.png is missing"),
    ("truncated image", {"imgname": "cut.png"}, "broken image", "cut.png is truncated"),
    ("no picture", {"imgname": "note.png"}, "broken image", "not a picture"),
    ("upwards", {"imgname": "../../../../secret.png"}, "image outside folder", "leads outside"),
    ("absolute", {"imgname": "/etc/hostname"}, "missing image", "is missing"),  # a path below png/, which is not there
    ("symlink outwards", {"imgname": "link.png"}, "image outside folder", "leads outside"),
    ("null byte", {"imgname": "a\0.png"}, "missing image", "cannot be followed"),
    ("two placeholders", {"query": "<image> or <image>?"}, "placeholders", "2 <image>"),
]


@pytest.mark.parametrize(("change", "kind", "words"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES])
def test_every_planted_fault_is_named(
    root: Path, tmp_path: Path, change: dict[str, object], kind: str, words: str
) -> None:
    pictures = root / "ChartQA Dataset/train/png"
    Image.effect_noise((64, 64), 60).save(pictures / "cut.png")
    (pictures / "cut.png").write_bytes((pictures / "cut.png").read_bytes()[:-800])
    (pictures / "note.png").write_text("no picture")
    (tmp_path / "secret.png").write_bytes(trees.picture("secret"))
    (pictures / "link.png").symlink_to(tmp_path / "secret.png")
    trees.edit(root / TRAIN, lambda items: items[1].update(change))

    report = prepare_benchmark(CHARTS, root, tmp_path / "out", max_broken=0.5)
    assert report.refused is None
    problem = report.problems[0]
    assert (problem.kind, problem.file, problem.row) == (kind, TRAIN, 2)
    assert words in problem.detail
    rows = list(open_prepared(tmp_path / "out").tasks[0].train.rows())
    assert [row.sample_id for row in rows] == ["train_human-1", "train_human-3", "train_augmented-1"]
    assert trees.picture("secret") not in {row.image for row in rows}

    refused = prepare_benchmark(CHARTS, root, tmp_path / "strict", strict=True)
    assert f"{TRAIN} row 2" in (refused.refused or "")
    assert not (tmp_path / "strict").exists()
    assert json.loads((tmp_path / "strict.report.json").read_text())["files"][0]["counts"] == {kind: 1}


def test_a_choice_picture_cannot_leave_the_root(tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    trees.iconqa(root)
    (tmp_path / "secret.png").write_bytes(trees.picture("secret"))
    path = root / "iconqa_data/iconqa/train/choose_img/7/data.json"
    item = json.loads(path.read_text())
    trees.put_json(path, {**item, "choices": ["choice_0.png", "../../../../../../secret.png"]})
    report = prepare_benchmark(trees.only("coast-domain", "iconqa"), root, tmp_path / "out")
    assert trees.faults(report)["iconqa", "train"] == {"image outside folder": 1, "count": 1}


def test_lists_name_faults_of_ids_boxes_and_leakage(tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    trees.coin(root)
    home = root / "Instructions_Original"
    trees.edit(home / "GQA/test.json", lambda items: items.append(items[0]))
    trees.edit(
        home / "Grounding/test.json", lambda items: items[1].update(answer_bbox="[0.1,0.0,0.5,0.6]")
    )  # over the padding
    trees.edit(
        home / "Grounding/train.json",
        lambda items: items[0].update(conversations=trees.talk("Where?", "[0.1,0.3,1.5,0.6]")),
    )
    test = json.loads((home / "TextVQA/val.json").read_text())[0]
    leak = {"image": test["image"], "conversations": trees.talk(f"<image>\n  {test['text'].upper()}", "red")}
    trees.edit(home / "TextVQA/train.json", lambda items: items[1].update(leak))
    trees.edit(
        home / "VQAv2/train.json", lambda items: items.append({**items[0], "conversations": trees.talk("Else?", "no")})
    )
    trees.edit(home / "VizWiz/train.json", lambda items: items[0].update(image="../../../secret.png"))
    tasks = ("gqa", "grounding", "textvqa", "vqav2", "vizwiz")
    report = prepare_benchmark(trees.only("coin", *tasks), root, tmp_path / "out")
    assert trees.faults(report) == {
        ("gqa", "test"): {"duplicate id": 1},
        ("grounding", "test"): {"box outside": 1},
        ("grounding", "train"): {"box outside": 1},
        ("textvqa", "train"): {"leaked": 1},
        ("vizwiz", "train"): {"image outside folder": 1, "count": 1},
    }
    kept = {(file.task, file.split): (file.rows, file.kept, file.repeated_ids) for file in report.files}
    assert kept["gqa", "test"] == (3, 2, 0)
    assert kept["vqav2", "train"] == (3, 3, 1)  # a picture asked about twice is two rows
    assert kept["grounding", "test"] == (2, 2, 0)  # a note leaves the row in


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"img_id": "../../secret"}, "wrong field", "COCO 2014"),
        ({"img_id": f"COCO_val2014_{99:012}"}, "missing image", "is missing"),
        ({"answers": [], "label": {}}, "empty answer", "no answer"),
        ({"sent": " "}, "wrong field", '"sent"'),
    ],
)
def test_faults_of_vqacl_are_named(tmp_path: Path, change: dict[str, object], kind: str, words: str) -> None:
    root = tmp_path / "downloads"
    trees.vqacl(root)
    file = "VQACL/datasets/vqa/Partition_Q/karpathy_train_q_judge.json"
    trees.edit(root / file, lambda items: items[1].update(change))
    problem = prepare_benchmark(trees.only("vqacl", "judge"), root, tmp_path / "out").problems[0]
    assert (problem.kind, problem.file, problem.row) == (kind, file, 2)
    assert words in problem.detail


def test_faults_of_trace_are_named(tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    trees.trace(root)
    home = root / "TRACE-Benchmark/LLM-CL-Benchmark_5000/FOMC"
    trees.edit(home / "train.json", lambda items: items[1].update(answer=" "))
    leak = json.loads((home / "test.json").read_text())[0]
    trees.edit(home / "train.json", lambda items: items[2].update(leak))
    report = prepare_benchmark(trees.only("trace", "fomc"), root, tmp_path / "out")
    assert trees.faults(report) == {("fomc", "train"): {"empty answer": 1, "leaked": 1}}


def test_a_caption_without_references_is_named(tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    trees.ucit(root)
    path = root / "instructions/Flickr30k/val_coco_type_3000.json"
    table = json.loads(path.read_text())
    trees.put_json(path, {**table, "annotations": [note for note in table["annotations"] if note["image_id"] == 1]})
    report = prepare_benchmark(trees.only("ucit", "flickr30k"), root, tmp_path / "out", max_broken=0.5)
    assert trees.faults(report) == {("flickr30k", "test"): {"empty answer": 1}}
    assert "no answer for the picture '1.jpg'" in report.problems[0].detail


def test_a_conversation_that_is_broken_leaves_its_siblings(tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    trees.svit(root)

    def damage(items: list[dict[str, object]]) -> None:
        talks = items[0]["conversations"]
        assert isinstance(talks, list)
        talks[0]["content"] = talks[0]["content"][:1]
        items[1]["image_id"] = "../../../secret"
        items[2]["conversations"] = "nothing"

    trees.edit(root / "svit" / "conversation.json", damage)
    report = prepare_benchmark(trees.only("coast-capability", "conversation"), root, tmp_path / "out")
    train = report.files[0]
    assert train.counts == {"wrong speaker order": 1, "wrong field": 1, "missing field": 1}
    assert train.kept == 8 - 1 - 2 * 2


def test_referring_answers_without_a_box_are_no_tests(tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    trees.svit(root)

    def damage(items: list[dict[str, object]]) -> None:
        for item, answer in ((items[-1], "Nobody."), (items[0], "A <st>man<ed> [0.2, 0.2, 1.4, 0.6].")):
            item["conversations"] = [{"content": trees.talk("Who?", answer)}]

    trees.edit(root / "svit" / "referring_qa.json", damage)
    report = prepare_benchmark(trees.only("coast-capability", "referring"), root, tmp_path / "out")
    assert trees.faults(report) == {
        ("referring", "train"): {"box outside": 1},
        ("referring", "test"): {"answer does not fit": 1, "count": 1},
    }


MISSING = [
    ("coast-domain", "chartqa", "ChartQA Dataset/"), ("coast-domain", "docvqa", "spdocvqa_qas"),
    ("coast-domain", "iconqa", "iconqa_data/iconqa/"), ("coast-domain", "medicalqa", "path-vqa/data/"),
    ("coast-capability", "detail", "svit/"), ("coin", "gqa", "Instructions_Original/"),
    ("coin-diverse", "gqa", "Instructions_Diverse/"), ("ucit", "arxivqa", "instructions/"),
    ("mllm-dcl", "driving", "train.json"), ("trace", "fomc", "LLM-CL-Benchmark_5000/"),
    ("vqacl", "judge", "Partition_Q/"),
]  # fmt: skip


@pytest.mark.parametrize(("stream", "task", "layout"), MISSING)
def test_a_missing_release_is_one_sentence_with_its_layout(tmp_path: Path, stream: str, task: str, layout: str) -> None:
    with pytest.raises(DataError, match="expected is") as caught:
        prepare_benchmark(trees.only(stream, task), tmp_path, tmp_path / "out")
    assert layout in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_original_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "PathVQA" / "qas" / "train" / "train_qa.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DataError, match="run code when they are opened"):
        prepare_benchmark(trees.only("coast-domain", "medicalqa"), tmp_path, tmp_path / "out")


@pytest.mark.parametrize("text", ['{"data": 7}', "[1]", "{", '{"rows": []}'])
def test_a_file_that_is_no_docvqa_is_one_sentence(tmp_path: Path, text: str) -> None:
    root = tmp_path / "downloads"
    trees.docvqa(root)
    (root / "DocVQA/spdocvqa_qas/val_v1.0_withQT.json").write_text(text)
    with pytest.raises(DataError, match="is not a JSON object with"):
        prepare_benchmark(trees.only("coast-domain", "docvqa"), root, tmp_path / "out")


def test_a_parquet_file_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    trees.pathvqa(root)
    (root / "path-vqa/data/validation-00000-of-00001.parquet").write_text("nothing")
    with pytest.raises(DataError, match="is not a Parquet file"):
        prepare_benchmark(trees.only("coast-domain", "medicalqa"), root, tmp_path / "out")


def test_a_missing_shard_of_a_release_is_missed(tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    trees.pathvqa(root)
    (root / "path-vqa/data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"holds 1 of the 2 files train-\*-of-00002, not 00001; get the rest\.$"):
        prepare_benchmark(trees.only("coast-domain", "medicalqa"), root, tmp_path / "out")


# What is planted in one CoIN tree, and how often it must be told. Besides, none of the twelve lists with a published
# size has it, two are shorter than the draw, and three of the rows to be taken have no picture.
PLANTED = {
    "missing image": 1,
    "broken image": 1,
    "image outside folder": 1,
    "empty answer": 1,
    "not UTF-8": 1,
    "duplicate id": 1,
    "duplicate picture": 1,
    "size differs": 1,
    "box outside": 1,
    "leaked": 1,
    "count": 12 + 2 + 3,
}


def _damaged_coin(root: Path) -> None:
    trees.coin(root)
    home, pictures = root / "Instructions_Original", root / "cl_dataset"
    trees.edit(home / "VizWiz/train.json", lambda items: items[0].update(image="VizWiz/images/none.jpg"))
    (pictures / "OCRVQA/images/0.jpg").write_text("no picture")
    trees.edit(home / "TextVQA/train.json", lambda items: items[0].update(image="../../secret.png"))
    trees.edit(home / "ImageNet/test.json", lambda items: items[0].update(answer=" "))
    latin = (home / "TextVQA/val.json").read_bytes().replace(b'"red"', b'"r\xe9d"', 1)
    (home / "TextVQA/val.json").write_bytes(latin)
    trees.edit(home / "VizWiz/val.json", lambda items: items.append(items[0]))
    (pictures / "GQA/images/1.jpg").write_bytes((pictures / "GQA/images/0.jpg").read_bytes())
    trees.edit(home / "Grounding/test.json", lambda items: items[0].update(size=[6, 4]))
    box = trees.talk("Where?", "[0.1,0.3,1.5,0.6]")
    trees.edit(home / "Grounding/train.json", lambda items: items[0].update(conversations=box))
    test = json.loads((home / "VQAv2/val.json").read_text())[0]
    leak = {"image": test["image"], "conversations": trees.talk(f"<image>\n{test['text']}", "red")}
    trees.edit(home / "VQAv2/train.json", lambda items: items[1].update(leak))
    shared = Image.linear_gradient("L").resize((32, 24))  # other test pictures are of one colour, and have no hash
    for name in ("GQA/images/2.jpg", "OCRVQA/images/3.jpg"):
        shared.save(pictures / name, "PNG")


def test_one_damaged_tree_is_told_whole_on_the_terminal_in_json_and_on_the_page(tmp_path: Path) -> None:
    root, out = tmp_path / "downloads", tmp_path / "out"
    _damaged_coin(root)
    shown = io.StringIO()
    command = Prepare(stream="coin", root=root, out=out, workers=1, max_broken=0.9)
    assert prepare(command, Console(file=shown, width=160)) == 0
    terminal = shown.getvalue()
    report = json.loads((out / "report.json").read_text())
    page = (out / "report.html").read_text()

    told = {fault["kind"]: fault["count"] for fault in report["faults"]}
    missed = [file for file in report["files"] if file["missed"]]
    assert told == PLANTED
    assert {(file["task"], file["split"]) for file in missed} == {
        ("vizwiz", "train"), ("ocrvqa", "train"), ("textvqa", "train"),
    }  # fmt: skip
    for kind, count in told.items():
        assert re.search(rf"^{kind}: {count} (rows? left out|noted and kept) ", terminal, re.MULTILINE)
        assert f"<h3>{kind}: {count} " in page
    rows = ["ImageNet/test.json row 1", "TextVQA/val.json row 1", "VizWiz/val.json row 3", "Grounding/test.json row 1"]
    for row in rows:
        assert f"Instructions_Original/{row}: " in page
        assert f"Instructions_Original/{row}: " in terminal

    shared = {(overlap["first"], overlap["second"]): overlap["pictures"] for overlap in report["overlaps"]["pairs"]}
    assert shared["gqa test", "ocrvqa test"] == 1
    assert re.search(r"ocrvqa test .* gqa test .* 1 of 2 ", terminal)
    assert page.count('<div class="card pair">') == sum(count for count in shared.values() if count)
    [licence] = report["licences"]
    for told_in in (terminal, page, licence["licence"]):
        assert "CC BY 4.0 (lists); every picture source has its own" in told_in
    assert "huggingface.co/datasets/Zacks-Chen/CoIN" in licence["get"]


def test_a_refused_preparation_leaves_its_page_beside_the_folder(tmp_path: Path) -> None:
    root, out = tmp_path / "downloads", tmp_path / "out"
    _damaged_coin(root)
    shown = io.StringIO()
    command = Prepare(stream="coin", root=root, out=out, workers=1, max_broken=0.9, strict=True)
    assert prepare(command, Console(file=shown, width=160)) == 1
    assert not out.exists()
    page = (tmp_path / "out.report.html").read_text()
    assert "Refused, nothing was written: --strict: " in page
    assert "<h3>leaked: 1 " in page
    assert "Not looked for: nothing was written." in page
    assert json.loads((tmp_path / "out.report.json").read_text())["state"] == "refused"
