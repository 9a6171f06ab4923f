"""Damaged releases: every fault is named, nothing outside the root is read, strict refuses, finished work is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import benchmark_trees as trees
import pytest
from PIL import Image

from components.data.benchmarks.catalogue import BENCHMARKS
from components.data.benchmarks.preparing import prepare_benchmark
from components.data.benchmarks.spec import PartSpec, StreamSpec
from components.data.prepared import open_prepared
from components.data.reports import ImportReport
from components.data.streams import StreamConfig, open_stream
from components.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
TRAIN, VAL = "ChartQA Dataset/train/train_human.json", "ChartQA Dataset/val/val_human.json"


def _only(stream: str, *tasks: str) -> StreamSpec:
    """Some tasks of a published stream, sizes not compared."""
    free = [
        replace(
            task, train=replace(task.train, use=None, published=()), test=replace(task.test, use=None, published=())
        )
        for task in BENCHMARKS[stream].tasks
        if task.name in tasks
    ]
    return StreamSpec(name=stream, tasks=tuple(free))


CHARTS = _only("coast-domain", "chartqa")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A whole ChartQA: 4 training rows, 2 to validate."""
    trees.chartqa(tmp_path / "downloads")
    return tmp_path / "downloads"


def _edit(path: Path, change: Callable[[list[dict[str, object]]], object]) -> None:
    items = json.loads(path.read_text())
    change(items)
    trees.put_json(path, items)


def _faults(report: ImportReport) -> dict[tuple[str, str], dict[str, int]]:
    """Kinds and numbers of what was found, by task and split."""
    found = {(file.task, file.split): dict(file.counts + file.notes) for file in report.files}
    return {where: kinds for where, kinds in found.items() if kinds}


def test_a_whole_release_passes_strict(root: Path, tmp_path: Path) -> None:
    report = prepare_benchmark(CHARTS, root, tmp_path / "out", strict=True)
    assert (report.refused, report.problems) == (None, [])
    assert [(file.split, file.rows, file.kept, file.with_image) for file in report.files] == [
        ("train", 4, 4, 4),
        ("test", 2, 2, 2),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["chartqa", "report.json", "stream.json"]
    assert sorted(path.name for path in (tmp_path / "out" / "chartqa").iterdir()) == ["test", "train"]


CHANGES: list[tuple[str, dict[str, object], str, str]] = [
    ("no answer", {"label": None}, "empty answer", "label"),
    ("empty answer", {"label": "  "}, "empty answer", "holds no answer"),
    ("empty list", {"label": []}, "empty answer", "holds no answer"),
    ("no question", {"query": ""}, "wrong field", '"query"'),
    ("image of a wrong kind", {"imgname": 7}, "wrong field", '"imgname"'),
    ("missing image", {"imgname": "none.png"}, "missing image", "none.png is missing"),
    ("truncated image", {"imgname": "cut.png"}, "broken image", "cut.png is truncated"),
    ("no picture", {"imgname": "note.png"}, "broken image", "no picture"),
    ("upwards", {"imgname": "../../../../secret.png"}, "image outside folder", "leads outside"),
    ("absolute", {"imgname": "/etc/hostname"}, "missing image", "is missing"),  # a path below png/, which is not there
    ("symlink outwards", {"imgname": "link.png"}, "image outside folder", "leads outside"),
    ("null byte", {"imgname": "a\0.png"}, "missing image", "cannot be followed"),
    ("two placeholders", {"query": "<image> or <image>?"}, "too many images", "2 <image>"),
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
    _edit(root / TRAIN, lambda items: items[1].update(change))

    report = prepare_benchmark(CHARTS, root, tmp_path / "out")
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
    report = prepare_benchmark(_only("coast-domain", "iconqa"), root, tmp_path / "out")
    assert _faults(report)["iconqa", "train"] == {"image outside folder": 1, "count": 1}


def test_lists_name_faults_of_ids_boxes_and_leakage(tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    trees.coin(root)
    home = root / "Instructions_Original"
    _edit(home / "GQA/test.json", lambda items: items.append(items[0]))
    _edit(
        home / "Grounding/test.json", lambda items: items[1].update(answer_bbox="[0.1,0.0,0.5,0.6]")
    )  # over the padding
    _edit(
        home / "Grounding/train.json",
        lambda items: items[0].update(conversations=trees.talk("Where?", "[0.1,0.3,1.5,0.6]")),
    )
    test = json.loads((home / "TextVQA/val.json").read_text())[0]
    leak = {"image": test["image"], "conversations": trees.talk(f"<image>\n  {test['text'].upper()}", "red")}
    _edit(home / "TextVQA/train.json", lambda items: items[1].update(leak))
    _edit(
        home / "VQAv2/train.json", lambda items: items.append({**items[0], "conversations": trees.talk("Else?", "no")})
    )
    _edit(home / "VizWiz/train.json", lambda items: items[0].update(image="../../../secret.png"))
    tasks = ("gqa", "grounding", "textvqa", "vqav2", "vizwiz")
    report = prepare_benchmark(_only("coin", *tasks), root, tmp_path / "out")
    assert _faults(report) == {
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


def test_a_caption_without_references_is_named(tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    trees.ucit(root)
    path = root / "instructions/Flickr30k/val_coco_type_3000.json"
    table = json.loads(path.read_text())
    trees.put_json(path, {**table, "annotations": [note for note in table["annotations"] if note["image_id"] == 1]})
    report = prepare_benchmark(_only("ucit", "flickr30k"), root, tmp_path / "out")
    assert _faults(report) == {("flickr30k", "test"): {"empty answer": 1}}
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

    _edit(root / "svit" / "conversation.json", damage)
    report = prepare_benchmark(_only("coast-capability", "conversation"), root, tmp_path / "out")
    train = report.files[0]
    assert train.counts == {"wrong speaker order": 1, "wrong field": 1, "missing field": 1}
    assert train.kept == 8 - 1 - 2 * 2


def test_referring_answers_without_a_box_are_no_tests(tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    trees.svit(root)

    def damage(items: list[dict[str, object]]) -> None:
        for item, answer in ((items[-1], "Nobody."), (items[0], "A <st>man<ed> [0.2, 0.2, 1.4, 0.6].")):
            item["conversations"] = [{"content": trees.talk("Who?", answer)}]

    _edit(root / "svit" / "referring_qa.json", damage)
    report = prepare_benchmark(_only("coast-capability", "referring"), root, tmp_path / "out")
    assert _faults(report) == {
        ("referring", "train"): {"box outside": 1},
        ("referring", "test"): {"answer does not fit": 1, "count": 1},
    }


def test_sizes_are_compared_with_the_published_ones(root: Path, tmp_path: Path) -> None:
    task = CHARTS.tasks[0]
    sizes = replace(task, train=replace(task.train, published=(5, 6)), test=replace(task.test, published=(3, 2)))
    report = prepare_benchmark(replace(CHARTS, tasks=(sizes,)), root, tmp_path / "out")
    (problem,) = report.problems
    assert problem.detail == "the source holds 4 rows, published are 5 or 6"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [file["published"] for file in report["files"]] == [[5, 6], [3, 2]]


def test_a_missing_picture_does_not_shift_the_draw(root: Path, tmp_path: Path) -> None:
    task = CHARTS.tasks[0]
    drawn = replace(CHARTS, tasks=(replace(task, train=PartSpec(source="train", use=2)),))
    ids = {}
    for name in ("whole", "broken"):
        report = prepare_benchmark(drawn, root, tmp_path / name)
        assert (report.files[0].rows, report.files[0].chosen) == (4, 2)
        ids[name] = [row.sample_id for row in open_prepared(tmp_path / name).tasks[0].train.rows()]
        kind, _, at = ids["whole"][0].partition("-")
        (root / f"ChartQA Dataset/train/png/{kind}_{int(at) - 1}.png").unlink(missing_ok=True)
    assert len(ids["whole"]) == 2
    assert ids["broken"] == ids["whole"][1:]


MISSING = [
    ("coast-domain", "chartqa", "ChartQA Dataset/"), ("coast-domain", "docvqa", "spdocvqa_qas"),
    ("coast-domain", "iconqa", "iconqa_data/iconqa/"), ("coast-domain", "medicalqa", "path-vqa/data/"),
    ("coast-capability", "detail", "svit/"), ("coin", "gqa", "Instructions_Original/"),
    ("coin-diverse", "gqa", "Instructions_Diverse/"), ("ucit", "arxivqa", "instructions/"),
    ("mllm-dcl", "driving", "train.json"),
]  # fmt: skip


@pytest.mark.parametrize(("stream", "task", "layout"), MISSING)
def test_a_missing_release_is_one_sentence_with_its_layout(tmp_path: Path, stream: str, task: str, layout: str) -> None:
    with pytest.raises(DataError, match="expected is") as caught:
        prepare_benchmark(_only(stream, task), tmp_path, tmp_path / "out")
    assert layout in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_original_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "PathVQA" / "qas" / "train" / "train_qa.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DataError, match="run code when they are opened"):
        prepare_benchmark(_only("coast-domain", "medicalqa"), tmp_path, tmp_path / "out")


@pytest.mark.parametrize("text", ['{"data": 7}', "[1]", "{", '{"rows": []}'])
def test_a_file_that_is_no_docvqa_is_one_sentence(tmp_path: Path, text: str) -> None:
    root = tmp_path / "downloads"
    trees.docvqa(root)
    (root / "DocVQA/spdocvqa_qas/val_v1.0_withQT.json").write_text(text)
    with pytest.raises(DataError, match="is not a DocVQA file"):
        prepare_benchmark(_only("coast-domain", "docvqa"), root, tmp_path / "out")


def test_a_parquet_file_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    trees.pathvqa(root)
    (root / "path-vqa/data/validation-00000-of-00001.parquet").write_text("nothing")
    with pytest.raises(DataError, match="is no Parquet file"):
        prepare_benchmark(_only("coast-domain", "medicalqa"), root, tmp_path / "out")


def test_a_split_without_rows_is_refused(root: Path, tmp_path: Path) -> None:
    for name in ("human", "augmented"):
        trees.put_json(root / f"ChartQA Dataset/val/val_{name}.json", [])
    report = prepare_benchmark(CHARTS, root, tmp_path / "out")
    assert (report.refused or "").startswith("no row of chartqa test could be read")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_preparation_goes_on(tmp_path: Path) -> None:
    root, out = tmp_path / "downloads", tmp_path / "out"
    trees.chartqa(root)
    trees.docvqa(root)
    stream = _only("coast-domain", "chartqa", "docvqa")
    notes = root / "DocVQA/spdocvqa_qas/train_v1.0_withQT.json"
    whole = notes.read_text()
    notes.write_text("{")  # found when the charts are written already
    with pytest.raises(DataError, match="is not a DocVQA file"):
        prepare_benchmark(stream, root, out)
    kept = tmp_path / ".out.unfinished" / "chartqa" / "train" / "part-00000.parquet"
    stamp = kept.stat().st_mtime_ns
    notes.write_text(whole)
    _edit(root / VAL, lambda items: items[0].update(query="Changed?"))
    report = prepare_benchmark(stream, root, out)
    assert report.problems == []
    assert (out / "chartqa/train/part-00000.parquet").stat().st_mtime_ns == stamp, (
        "an unchanged split is not written again"
    )
    assert next(open_prepared(out).tasks[0].test.rows()).instruction.startswith("Changed?"), "a changed one is"
    assert [(file.kept, file.with_image) for file in report.files[:2]] == [(4, 4), (2, 2)]
    assert not list(tmp_path.glob(".*"))
    assert not list(out.rglob("*.whole"))
    fresh = prepare_benchmark(stream, root, tmp_path / "fresh")
    assert fresh.problems == []
    assert open_prepared(tmp_path / "fresh").digest == open_prepared(out).digest


def test_other_folders_are_not_replaced(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no prepared stream"):
        prepare_benchmark(CHARTS, root, tmp_path / "out")
    with pytest.raises(ConfigError, match="is no folder"):
        prepare_benchmark(CHARTS, tmp_path / "none", tmp_path / "new")


def test_an_unprepared_stream_says_how_to_prepare_it() -> None:
    with pytest.raises(ConfigError, match=r"prepare\.py coast-domain --root"):
        open_stream(StreamConfig(name="coast-domain"))


def _prepare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "pipelines" / "prepare.py"), *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)


def test_the_command_prints_digest_table_and_problems(tmp_path: Path) -> None:
    root, out = tmp_path / "downloads", tmp_path / "out"
    trees.mllm_cl(root)
    (root / "Sci/images/train0.png").unlink()
    done = _prepare("mllm-dcl", "--root", str(root), "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert BENCHMARKS["mllm-dcl"].digest in done.stdout
    assert "Sci/train.json row 1: the image train0.png is missing" in done.stdout
    assert json.loads((out / "report.json").read_text())["spec"] == BENCHMARKS["mllm-dcl"].digest
    assert open_prepared(out).task_names == list(BENCHMARKS["mllm-dcl"].task_names)

    refused = _prepare("mllm-dcl", "--root", str(root), "--out", str(tmp_path / "strict"), "--strict")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: --strict: 2 problems in science train")
    assert refused.stderr.count("\n") == 1
    without = _prepare("coin", "--out", str(out))
    assert (without.returncode, "--root" in without.stderr) == (1, True)
