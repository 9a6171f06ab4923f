"""Published releases read from tiny trees in their own layouts: the rows are what the source says."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import benchmark_trees as trees
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.core.errors import DataError
from components.data.benchmarks.catalogue import BENCHMARKS, LETTER, SHORT
from components.data.benchmarks.preparing import prepare_benchmark
from components.data.benchmarks.release import answers_of
from components.data.formats.parallel_map import Threads
from components.data.problems import ItemError
from components.data.rows import Row
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream

Rows = dict[str, list[Row]]


def _prepared(stream: str, root: Path, tmp_path: Path, *makers: Callable[[Path], None]) -> Rows:
    """Rows of a stream prepared from fresh trees and opened as a run opens it, by "task side"."""
    for make in makers:
        make(root)
    out = tmp_path / "out"
    report = prepare_benchmark(BENCHMARKS[stream], root, out, in_order=Threads(workers=2))
    assert report.refused is None
    assert [problem for problem in report.problems if problem.kind != "count"] == []
    opened = open_stream(StreamConfig(name=str(out)))
    assert opened.task_names == list(BENCHMARKS[stream].task_names)
    assert [task.max_new_tokens for task in opened.tasks] == [task.max_new_tokens for task in BENCHMARKS[stream].tasks]
    splits = [split for task in opened.tasks for split in (task.train, task.test)]
    assert {split.card["spec"] for split in splits} == {BENCHMARKS[stream].digest}
    return {f"{split.task} {split.split}": list(split.rows()) for split in splits}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


def test_coast_domain(root: Path, tmp_path: Path) -> None:
    rows = _prepared("coast-domain", root, tmp_path, trees.chartqa, trees.docvqa, trees.iconqa, trees.pathvqa)
    chart = rows["chartqa train"]
    assert [row.sample_id for row in chart] == ["train_human-1", "train_human-2", "train_human-3", "train_augmented-1"]
    assert [turn.text for turn in chart[1].turns] == [f"<image>\nHow much is train_human_1.png?\n{SHORT}", "1.5"]
    assert (chart[1].answers, chart[1].metric, chart[1].width, chart[1].height) == (("1.5",), "relaxed", 12, 8)
    assert chart[1].image == (root / "ChartQA Dataset/train/png/train_human_1.png").read_bytes()
    assert chart[3].source == "ChartQA Dataset/train/train_augmented.json#1"

    page = rows["docvqa test"][1]
    assert (page.sample_id, page.answers, page.metric) == ("3001", ("Value 1", "value 1"), "anls")
    assert page.turns[1].text == "Value 1"
    assert page.image == (root / "DocVQA/spdocvqa_images/val1_1.png").read_bytes()

    medical = rows["medicalqa train"]
    assert [row.sample_id for row in medical] == ["train-1", "train-2", "train-3"]  # over two files
    assert medical[2].image == trees.picture("train-00001-of-00002-2.jpg")
    assert (medical[2].turns[0].text, medical[2].answers) == (f"<image>\nIs tissue 2 seen?\n{SHORT}", ("yes",))


def test_the_three_kinds_of_iconqa(root: Path, tmp_path: Path) -> None:
    rows = _prepared("coast-domain", root, tmp_path, trees.chartqa, trees.docvqa, trees.iconqa, trees.pathvqa)
    shown, words, *filled = rows["iconqa train"]
    assert [row.sample_id for row in rows["iconqa train"]] == [
        "choose_img-7", "choose_txt-7", "fill_in_blank-9", "fill_in_blank-10",
    ]  # fmt: skip
    assert words.turns[0].text == f"<image>\nWhich word?\nA. cat\nB. dog\nC. cow\n{LETTER}"
    assert words.answers == ("C",)
    assert [row.answers for row in filled] == [("9",), ("10",)]
    assert shown.answers == ("B",)
    assert "from left to right: A, B." in shown.turns[0].text
    sheet = Image.open(io.BytesIO(shown.image or b""))
    assert sheet.size == (shown.width, shown.height) == (40, 10 + 16 + 6)  # picture, gap, choices
    choices = [Image.open(root / f"iconqa_data/iconqa/train/choose_img/7/choice_{at}.png") for at in (0, 1)]
    assert [sheet.getpixel((3 + 24 * at, 29)) for at in (0, 1)] == [choice.getpixel((3, 3)) for choice in choices]
    assert sheet.getpixel((10, 29)) == (255, 255, 255)


def test_the_older_layout_of_docvqa(root: Path, tmp_path: Path) -> None:
    older = lambda at: trees.docvqa(at, older=True)  # noqa: E731
    rows = _prepared("coast-domain", root, tmp_path, trees.chartqa, older, trees.iconqa, trees.pathvqa)
    assert rows["docvqa train"][2].image == (root / "DocVQA/train/documents/train0_1.png").read_bytes()


def test_coast_capability_splits_by_picture(root: Path, tmp_path: Path) -> None:
    rows = _prepared("coast-capability", root, tmp_path, trees.svit)
    for task in BENCHMARKS["coast-capability"].task_names:
        pictures = {side: {row.sample_id.split("-")[0] for row in rows[f"{task} {side}"]} for side in ("train", "test")}
        assert pictures["train"] == {str(number) for number in trees.TRAIN_PICTURES}
        assert pictures["test"] == {str(number) for number in trees.TEST_PICTURES}
    first = trees.TEST_PICTURES[0]
    talk = rows["conversation test"][0]
    assert talk.sample_id == f"{first}-1"
    assert [turn.speaker for turn in talk.turns] == ["human", "gpt"] * 2
    assert [turn.text for turn in talk.turns] == [f"<image>\nAbout {first}?", f"It is {first}.", "And more?", "No."]
    assert (talk.answers, talk.metric) == (("No.",), "exact")
    assert rows["conversation train"][1].sample_id == f"{trees.TRAIN_PICTURES[0]}-2"
    assert {row.metric for row in rows["referring test"]} == {"iou"}


def test_turns_without_content_are_one_conversation(root: Path, tmp_path: Path) -> None:
    trees.svit(root)
    path = root / "svit" / "detail_description.json"
    items = json.loads(path.read_text())
    trees.put_json(path, [{**item, "conversations": item["conversations"][0]["content"]} for item in items])
    rows = _prepared("coast-capability", root, tmp_path)
    assert rows["detail train"][0].turns[0].text == "<image>\nDescribe it."


def test_coin(root: Path, tmp_path: Path) -> None:
    rows = _prepared("coin", root, tmp_path, trees.coin)
    pictured, texts = rows["scienceqa train"]
    assert pictured.image is not None
    assert (texts.image, texts.width) == (None, None)
    assert not texts.turns[0].text.startswith("<image>")
    assert [turn.text for turn in rows["gqa train"][0].turns][2:] == ["And this?", "blue"]
    assert rows["gqa train"][0].answers == ("blue",)
    box = rows["grounding test"][0]
    assert (box.metric, box.answers, box.turns[-1].text) == ("iou", ("[0.10,0.30,0.50,0.60]",), "[0.10,0.30,0.50,0.60]")
    assert rows["imagenet train"][0].answers == ("Castle.",)
    assert rows["textvqa test"][0].source == "Instructions_Original/TextVQA/val.json#1"
    assert rows["textvqa test"][1].image == (root / "cl_dataset/TextVQA/images/3.jpg").read_bytes()


def test_wordings_and_orders_of_coin_draw_the_same_rows(root: Path, tmp_path: Path) -> None:
    trees.coin(root)
    trees.coin(root, "Instructions_Diverse", first="Please: ")
    original = _prepared("coin", root, tmp_path / "a")
    diverse = _prepared("coin-diverse-reversed", root, tmp_path / "b")
    ids = [{key: [row.sample_id for row in rows] for key, rows in found.items()} for found in (original, diverse)]
    assert ids[0] == ids[1]
    assert diverse["gqa test"][0].instruction == f"Please: {original['gqa test'][0].instruction}"


def test_ucit_gives_repeated_ids_new_ones_and_keeps_five_references(root: Path, tmp_path: Path) -> None:
    rows = _prepared("ucit", root, tmp_path, trees.ucit)
    assert [row.sample_id for row in rows["vizwiz-caption train"]] == ["7", "7~2"]
    assert [row.sample_id for row in rows["vizwiz-caption test"]] == ["0", "1"]
    assert rows["flickr30k test"][1].answers == tuple(f"caption {at} of 2" for at in range(5))
    assert rows["clevr-math test"][1].answers == ("one 1",)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    renewed = {(file["task"], file["split"]): file["repeated_ids"] for file in report["files"]}
    assert {key for key, count in renewed.items() if count} == {("vizwiz-caption", "train"), ("flickr30k", "train")}


MOVES = {
    "as MCITlib's README has it": {
        "instructions/CLEVR": "UCIT/CLEVR-Math", "instructions": "UCIT", "datasets": "UCIT/datasets",
        "UCIT/ArxivQA/train_4w.json": "UCIT/ArxivQA/train.json",
        "UCIT/ArxivQA/test_3000.json": "UCIT/ArxivQA/test.json",
    },
    "as its path files have it": {
        "instructions/CLEVR": "UCIT/CLEVR-Math", "instructions/VizWiz": "UCIT/VizWiz-caption",
        "instructions/Flickr30k": "UCIT/Flickr30k-cap", "instructions": "UCIT", "datasets": "UCIT",
    },
    "lists beside the pictures": {"instructions": ".", "datasets": "datasets"},
}  # fmt: skip


@pytest.mark.parametrize("moves", MOVES.values(), ids=MOVES)
def test_ucit_as_others_lay_it_out(root: Path, tmp_path: Path, moves: dict[str, str]) -> None:
    """The same rows and pictures as from the release's own layout."""
    whole = _prepared("ucit", root, tmp_path / "a", trees.ucit)
    for source, target in moves.items():
        _move(root / source, root / target)
    moved = _prepared("ucit", root, tmp_path / "b")
    told = [
        {key: [(row.sample_id, row.turns, row.answers, row.image) for row in rows] for key, rows in found.items()}
        for found in (whole, moved)
    ]
    assert told[0] == told[1]


def _move(source: Path, target: Path) -> None:
    """Move a file, or what a folder holds into a folder that may be there."""
    if source.is_file():
        source.rename(target)
        return
    for file in [path for path in source.rglob("*") if path.is_file()]:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(place)


def test_coin_in_its_repositorys_playground(root: Path, tmp_path: Path) -> None:
    trees.coin(root)
    (root / "playground").mkdir()
    (root / "Instructions_Original").rename(root / "playground" / "Instructions_Original")
    rows = _prepared("coin", root, tmp_path)
    assert rows["gqa test"][0].source == "playground/Instructions_Original/GQA/test.json#1"
    assert rows["textvqa test"][1].image == (root / "cl_dataset/TextVQA/images/3.jpg").read_bytes()


def _renumbered(table: dict[str, list[dict[str, object]]], first: int, name: str | None) -> dict[str, object]:
    """A COCO caption file with ids from `first`, its pictures listed backwards, with other names or none."""
    images = [{"id": first + at, **({"file_name": f"{name}{at}.jpg"} if name else {})} for at in range(2)][::-1]
    notes = [{**note, "image_id": first + int(str(note["image_id"])) - 1} for note in table["annotations"]]
    return {"images": images, "annotations": notes}


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("name", ["COCO_val_", None])
def test_captions_whose_names_do_not_join_are_paired_by_place(
    root: Path, tmp_path: Path, first: int, name: str | None
) -> None:
    """As the released script does, and told in the report."""
    trees.ucit(root)
    path = root / "instructions/Flickr30k/val_coco_type_3000.json"
    trees.put_json(path, _renumbered(json.loads(path.read_text()), first, name))
    report = prepare_benchmark(trees.only("ucit", "flickr30k"), root, tmp_path / "out")
    assert report.refused is None
    assert trees.faults(report) == {("flickr30k", "test"): {"paired by place": 2}}
    test = list(open_stream(StreamConfig(name=str(tmp_path / "out"))).tasks[0].test.rows())
    assert [row.answers for row in test] == [tuple(f"caption {k} of {at}" for k in range(5)) for at in (1, 2)]
    assert [row.sample_id for row in test] == ["0", "1"]


def test_captions_without_an_images_list_are_paired_by_the_order_of_their_ids(root: Path, tmp_path: Path) -> None:
    trees.ucit(root)
    path = root / "instructions/Flickr30k/val_coco_type_3000.json"
    trees.put_json(path, {"annotations": json.loads(path.read_text())["annotations"][::-1]})
    prepare_benchmark(trees.only("ucit", "flickr30k"), root, tmp_path / "out")
    test = open_stream(StreamConfig(name=str(tmp_path / "out"))).tasks[0].test.rows()
    assert [set(row.answers) for row in test] == [{f"caption {k} of {at}" for k in range(5)} for at in (1, 2)]


def test_captions_of_another_number_of_pictures_are_refused(root: Path, tmp_path: Path) -> None:
    trees.ucit(root)
    path = root / "instructions/Flickr30k/val_coco_type_3000.json"
    table = json.loads(path.read_text())
    trees.put_json(path, {"images": [{"id": 1}], "annotations": table["annotations"][:5]})
    with pytest.raises(DataError, match=r"its 1 pictures cannot be paired with 2 rows by their places"):
        prepare_benchmark(trees.only("ucit", "flickr30k"), root, tmp_path / "out")


def test_mllm_cl_finds_pictures_with_and_without_their_folder(root: Path, tmp_path: Path) -> None:
    rows = _prepared("mllm-dcl", root, tmp_path, trees.mllm_cl)
    for at, row in enumerate(rows["driving train"]):
        assert row.image == (root / f"AD/images/train{at}.png").read_bytes()


def test_mllm_cls_abilities_have_test_folders_of_their_own(root: Path, tmp_path: Path) -> None:
    rows = _prepared("mllm-acl", root, tmp_path, trees.mllm_cl_abilities)
    for task, folder in (("ocr", "OCR"), ("math", "Math"), ("perception", "VP"), ("gui", "APP")):
        for at in range(2):
            assert rows[f"{task} train"][at].image == (root / f"{folder}/images/train{at}.png").read_bytes()
            assert rows[f"{task} test"][at].image == (root / f"{folder}_test/images/test{at}.png").read_bytes()


def test_trace_is_text_alone(root: Path, tmp_path: Path) -> None:
    rows = _prepared("trace", root, tmp_path, trees.trace)
    assert len(rows) == 16
    assert {row.image for given in rows.values() for row in given} == {None}
    assert [row.sample_id for row in rows["fomc train"]] == ["train-1", "train-2", "train-3"]
    assert [turn.text for turn in rows["c-stance test"][1].turns] == ["What of test 1 of C-STANCE?\nAnswer:", "支持"]
    assert rows["scienceqa test"][0].answers == ("A\nBecause it is so.",)
    assert {name for name, given in rows.items() if given[0].metric == "edit"} == {"py150 train", "py150 test"}
    assert rows["py150 train"][0].source == "TRACE-Benchmark/LLM-CL-Benchmark_5000/Py150/train.json#1"


def test_vqacl_accepts_what_three_people_said(root: Path, tmp_path: Path) -> None:
    trees.vqacl(root)
    lists = root / "VQACL/datasets/vqa/Partition_Q"
    lone = [{"answer": word} for word in ("to see", "sun", "to see", "glare", "sight")]
    trees.edit(lists / "karpathy_test_q_causal.json", lambda items: items[0].update(answers=lone, label={}))
    trees.edit(lists / "karpathy_train_q_count.json", lambda items: items[1].pop("answers"))
    rows = _prepared("vqacl", root, tmp_path)
    color = rows["color train"]
    assert [turn.text for turn in color[1].turns] == [f"<image>\nWhat is 1 of color in train?\n{SHORT}", "red"]
    assert (color[1].sample_id, color[1].answers) == ("6021", ("red", "blue"))
    assert color[1].image == (root / f"VQACL/datasets/COCO/images/train2014/COCO_train2014_{6:012}.jpg").read_bytes()
    assert rows["causal test"][0].answers == ("to see",)
    assert rows["count train"][1].answers == ("red", "blue")


def test_threads_change_nothing(root: Path, tmp_path: Path) -> None:
    trees.coin(root)
    for workers in (1, 3):
        prepare_benchmark(BENCHMARKS["coin"], root, tmp_path / str(workers), in_order=Threads(workers=workers))
    one, three = (open_stream(StreamConfig(name=str(tmp_path / str(workers)))) for workers in (1, 3))
    assert one.digest == three.digest


_texts = st.text(min_size=1).filter(lambda text: text.strip())
_words = _texts | st.integers() | st.floats(allow_nan=False)


@settings(deadline=None)  # a busy machine is no failure
@given(_words | st.lists(_words, min_size=1))
def test_answers_drift_between_text_number_and_list(value: object) -> None:
    answers = answers_of({"a": value}, "a", "b")
    given_list = value if isinstance(value, list) else [value]
    assert answers == tuple(str(one).strip() for one in given_list)


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.none() | st.booleans() | st.just([]) | st.just(" ") | st.dictionaries(st.text(), st.text()) | st.just(["a", ""])
)
def test_what_is_no_answer_is_refused(value: object) -> None:
    with pytest.raises(ItemError):
        answers_of({"a": value}, "a")
