"""Rows as people write them: each one is kept, or named with its file and row; none is passed over."""

from __future__ import annotations

import copy
import io
import json
import tarfile
from base64 import b64encode
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import suite_trees
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.core.errors import ConfigError
from components.data.formats.items import ItemReader, distinct_items
from components.data.formats.json_items import iter_items
from components.data.formats.pictures import open_image
from components.data.importing import import_stream, read_stream_file
from components.data.prepared import open_prepared
from components.data.problems import ItemError
from components.data.quality.report import ImportReport
from components.data.rows import Row
from components.data.suite import open_suite
from components.data.suites.preparing import prepare_suite

Item = dict[str, object]


def talk(question: str = "<image>\nWhat?", answer: str = "A", **flags: object) -> list[Item]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer, **flags}]


def messages(question: object = "<image>What?", answer: object = "A", **flags: object) -> list[Item]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **flags}]


def llava(key: str = "1", **more: object) -> Item:
    return {"id": key, "image": "a.png", "conversations": talk(), **more}


def prepared(root: Path, train: str | bytes, *, name: str = "train.json", max_broken: float = 0.99, toml: str = "",
             task: str = "") -> tuple[ImportReport, list[Row]]:  # fmt: skip
    """The report and the training rows of a stream whose training data is `train`."""
    (root / "img").mkdir(exist_ok=True)
    for at, picture in enumerate(("a.png", "b.png")):
        Image.new("RGB", (30, 20), (200, 10 * at, 10)).save(root / "img" / picture)
    (root / name).write_bytes(train if isinstance(train, bytes) else train.encode())
    (root / "test.json").write_text(json.dumps([llava()]))
    (root / "s.toml").write_text(
        f'name = "s"\n{toml}\n[[task]]\nname = "t"\ntrain = "{name}"\ntest = "test.json"\nimages = "img"\n'
        f'metric = "exact"\nmax_new_tokens = 8\n{task}\n'
    )
    report = import_stream(read_stream_file(root / "s.toml"), root / "out", max_broken=max_broken)
    rows = [] if report.refused else list(open_prepared(root / "out").tasks[0].train.rows())
    return report, rows


ONE, TWO, THREE = (json.dumps(llava(key)) for key in "123")
FORMS = {
    "a list": f"[{ONE}, {TWO}, {THREE}]",
    "a pretty list": json.dumps([llava(key) for key in "123"], indent=2),
    "lines": f"{ONE}\n{TWO}\n{THREE}\n",
    "lines with blank ones": f"\n{ONE}\n\n{TWO}\n{THREE}",
    "lines of Windows": f"{ONE}\r\n{TWO}\r\n{THREE}\r\n",
    "two lists": f"[{ONE}]\n[{TWO}, {THREE}]",
    "two lists in one line": f"[{ONE}][{TWO}, {THREE}]",
    "pretty lists": json.dumps([llava("1")], indent=1) + "\n" + json.dumps([llava("2"), llava("3")], indent=1),
    "an empty list before": f"[]\n[{ONE}, {TWO}, {THREE}]",
    "lines of lists": f"[{ONE}]\n[{TWO}, {THREE}]\n",
    "a list, then lines": f"[{ONE}]\n{TWO}\n{THREE}",
    "a line, then a list": f"{ONE}\n[{TWO}, {THREE}]",
    "objects in one line": f"{ONE} {TWO}{THREE}",
    "lines with commas": f"{ONE},\n{TWO},\n{THREE}",
    "pretty objects": "\n".join(json.dumps(llava(key), indent=2) for key in "123"),
    "wrapped": f'{{"data": [{ONE}, {TWO}, {THREE}]}}',
    "wrapped with words": json.dumps({"version": 1, "by": ["me"], "rows": [llava(key) for key in "123"]}, indent=2),
    "two wrapped": f'{{"data": [{ONE}]}}\n{{"data": [{TWO}, {THREE}]}}',
    "lists with byte order marks": f"\ufeff[{ONE}]\n\ufeff[{TWO}, {THREE}]",
    "lists in a list": f"[[{ONE}], [{TWO}, {THREE}]]",
    "lists in a list, one of them empty": f"[[], [{ONE}, {TWO}], [], [{THREE}, []]]",
    "wrapped in a list": f'[{{"data": [{ONE}, {TWO}]}}, {THREE}]',
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_json_holds_the_same_rows(tmp_path: Path, form: str) -> None:
    report, rows = prepared(tmp_path, FORMS[form], max_broken=0.0)
    assert report.refused is None
    assert [(row.sample_id, row.answers, row.width) for row in rows] == [(key, ("A",), 30) for key in "123"]


DAMAGED = {
    "text behind a list": (f"[{ONE}]\nand so on", 1, "not JSON"),
    "text behind a list in its line": (f"[{ONE}] and so on", 1, "not JSON"),
    "a cut list behind a list": (f"[{ONE}]\n[{TWO}, ", 2, "not JSON from here on"),
    "a cut object behind a list": (f'[{ONE}]\n{{"id": ', 1, "not JSON"),
    "a second closing bracket": (f"[{ONE}, {TWO}]]", 2, "not JSON"),
    "text behind an object": (f"{ONE} oops\n{TWO}", 2, "'oops', which is not JSON"),
    "a cut line between lines": (f'{ONE}\n{{"id": "2", "conversations": [\n{THREE}', 2, "not JSON"),
    "a broken pretty object": (f'{json.dumps(llava("1"), indent=1)}\n{{\n"id": oops\n}}', 1, "not JSON"),
    "two lists of rows": (f'{{"train": [{ONE}], "test": [{TWO}]}}\n{THREE}', 1, "several lists|holds the lists"),
    "an object without rows": (f'{{"info": {{"a": 1}}}}\n{ONE}', 1, '"conversations" is missing|"id" is missing'),
    "a field twice": (f'{{"image": "b.png", {TWO[1:]}\n{ONE}', 1, "'image' twice"),
    "a turn's field twice": (TWO.replace('"from"', '"value": "B", "from"') + f"\n{ONE}", 1, "'value' twice"),
    "a number": (f"7\n{ONE}", 1, "this is a number"),
    "a list of broken rows in a list": (f'[[{{"id": "2"}}, {{"id": "3"}}], [{ONE}]]', 1, '"conversations" is missing'),
    "turns without a row": (json.dumps([talk()]) + f"\n{ONE}", 1, "a list"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_no_row_is_named(tmp_path: Path, damage: str) -> None:
    text, kept, words = DAMAGED[damage]
    report, _ = prepared(tmp_path, text)
    file = report.files[0]
    assert file.kept == kept
    assert file.counts.total() == file.rows - kept > 0
    details = " ".join(problem.detail for problem in file.problems)
    assert any(word in details for word in words.split("|")), details


def test_a_file_that_breaks_off_is_refused_whatever_may_be_broken(tmp_path: Path) -> None:
    report, _ = prepared(tmp_path, f"[{ONE}, {TWO}, oops, {THREE}]")
    assert report.refused is not None
    assert report.refused.startswith(f"{tmp_path / 'train.json'} row 3: the list is not JSON from here on")
    assert not (tmp_path / "out").exists()


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(st.lists(st.booleans(), max_size=4), min_size=1, max_size=5), data=st.data())
def test_no_item_is_passed_over_in_any_mixture(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[bool]], data: st.DataObject
) -> None:
    texts: list[str] = []
    wanted: list[str] = []
    for group in groups:
        items = [llava(str(len(wanted) + at)) for at in range(len(group))]
        wanted += [str(item["id"]) for item in items]
        form = data.draw(st.sampled_from(["list", "pretty", "lines", "objects", "wrapped"]))
        if form in ("lines", "objects"):
            texts += [json.dumps(item, indent=None if form == "lines" else 3) for item in items]
        elif form == "wrapped" and items:
            texts.append(json.dumps({"data": items}))
        else:
            texts.append(json.dumps(items, indent=1 if form == "pretty" else None))
    path = tmp_path_factory.mktemp("mix") / "mix.json"
    path.write_text("\n".join(texts))
    found = list(iter_items(path))
    assert [item["id"] for _, item in found if isinstance(item, dict)] == wanted
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))


PARTS = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]
WITH_PICTURE: dict[str, Item] = {
    "LLaVA": llava(),
    "one picture in a list": llava(image=["a.png"]),
    "image beside equal images": llava(images=["a.png"]),
    "image as a struct": llava(image={"bytes": None, "path": "a.png"}),
    "no placeholder": llava(conversations=talk("What?")),
    "roles of OpenAI in conversations": llava(conversations=messages()),
    "user and assistant": llava(conversations=[{"from": "user", "value": "What?"}, {**talk()[1], "from": "model"}]),
    "messages and image": {"messages": messages(), "image": "a.png"},
    "messages and images": {"messages": messages(), "images": ["a.png"]},
    "messages and image in a list": {"messages": messages("What?"), "image": ["a.png"]},
    "a path in a part": {"messages": messages(PARTS)},
    "a path in a part and images": {"messages": messages(PARTS), "images": ["a.png"]},
    "image_url": {"messages": messages([{"type": "image_url", "image_url": {"url": "a.png"}}, PARTS[1]])},
    "parts without types": {"messages": messages([{"image": "a.png"}, {"text": "What?"}])},
    "an answer in parts": {"messages": messages("<image>What?", [{"type": "text", "text": "A"}]), "image": "a.png"},
    "query, response, image": {"query": "What?", "response": "A", "image": "a.png"},
    "query, response, images": {"query": "<image>What?", "response": "A", "images": ["a.png"]},
    "alpaca with image": {"instruction": "What?", "output": "A", "image": "a.png"},
    "a tag of Qwen": {"id": "1", "conversations": talk("<img>a.png</img>\nWhat?")},
    "a tag of Qwen in messages": {"messages": messages("<img>a.png</img>\nWhat?")},
    "a tag and the same image": llava(conversations=talk("<img>a.png</img>What?")),
    "turns in pairs": {"conversation": [{"human": "<image>What?", "assistant": "A"}], "images": ["a.png"]},
    "empty other fields": llava(system="", history=[], tools=None, videos=[], images=[]),
}  # fmt: skip


@pytest.mark.parametrize("layout", WITH_PICTURE)
def test_every_layout_of_a_picture_is_the_same_row(tmp_path: Path, layout: str) -> None:
    report, (row,) = prepared(tmp_path, json.dumps([WITH_PICTURE[layout]]), max_broken=0.0)
    assert (row.turns[0].text, row.answers) == ("<image>\nWhat?", ("A",))
    assert row.image == (tmp_path / "img" / "a.png").read_bytes()
    assert not report.kinds
    assert not report.files[0].fields


@pytest.mark.parametrize(
    "text",
    [
        "How do I write <video> in HTML?",
        "Mend <img src='a.png'> for me",
        "Is <audio> old?",
        "Is a ![x](y) a picture, or what",
    ],
)
def test_a_text_about_tags_is_a_text(tmp_path: Path, text: str) -> None:
    code = "<html><video>\n<img src='a.png'></html>"
    items: list[Item] = [{"id": "1", "conversations": talk(text, code)}, {"messages": messages(text, code)}]
    report, rows = prepared(tmp_path, json.dumps(items), max_broken=0.0)
    assert [[turn.text for turn in row.turns] for row in rows] == [[text, code]] * 2
    assert not report.kinds


def test_a_picture_in_a_data_uri_is_the_rows(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (7, 9), "green").save(file, "PNG")
    uri = "data:image/png;base64," + b64encode(file.getvalue()).decode()
    part = {"type": "image_url", "image_url": {"url": uri}}
    items = [{"messages": messages([part, PARTS[1]])}, llava("2", image=uri), llava("3", image=f"{uri}!"),
             llava("4", image="data:text/plain,x"), llava("5", image="https://somewhere.org/a.png")]  # fmt: skip
    report, rows = prepared(tmp_path, json.dumps(items))
    assert [(row.sample_id, row.image, row.width) for row in rows] == [
        (key, file.getvalue(), 7) for key in ("row-1", "2")
    ]
    assert [(problem.row, problem.kind) for problem in report.problems] == [
        (3, "broken image"), (4, "broken image"), (5, "missing image"),
    ]  # fmt: skip
    assert all(len(problem.detail) < 200 for problem in report.problems)


NAMED: dict[str, tuple[Item, str]] = {
    "system": (llava(system="Be brief."), "system text"),
    "system without a picture": ({"id": "1", "system": "Be brief.", "conversations": talk("What?")}, "system text"),
    "system in a list": (llava(system=["Be brief."]), "system text"),
    "system_prompt": (llava(system_prompt="Be brief."), "system text"),
    "a system turn": (llava(conversations=[{"from": "system", "value": "Be brief."}, *talk()]), "system text"),
    "a developer's turn": (
        {"messages": [{"role": "developer", "content": "Be brief."}, *messages("Q")]},
        "system text",
    ),
    "two pictures": (llava(image=["a.png", "b.png"]), "placeholders"),
    "image beside other images": (llava(images=["b.png"]), "several layouts"),
    "a tag beside another image": (llava(conversations=talk("<img>b.png</img>What?")), "several layouts"),
    "pictures in another order": (llava(image=["a.png", "b.png"], images=["b.png", "a.png"]), "several layouts"),
    "two placeholders": (llava(conversations=talk("<image><image>What?")), "placeholders"),
    "a placeholder in an answer": (llava(conversations=talk("What?", "It is <image> A")), "picture in an answer"),
    "a tag in an answer": (
        {"messages": messages("Q?", "<img>a.png</img>")},
        "picture in an answer",
    ),
    "a placeholder among the accepted answers": (llava(answers=["<image> A"]), "picture in an answer"),
    "an open tag": (llava(conversations=talk("<img>\nWhat?")), "other placeholder"),
    "another model's placeholder": (llava(conversations=talk("<|image_pad|>What?")), "other placeholder"),
    "numbered placeholders": (llava(conversations=talk("<image_1>What?")), "other placeholder"),
    "a placeholder in capitals": (llava(conversations=talk("<Image>\nWhat?")), "other placeholder"),
    "an open tag amid words": (llava(conversations=talk("See <img> here")), "other placeholder"),
    "HTML at the start": ({"id": "1", "conversations": talk("<img src='a.png'>\nWhat?")}, "other placeholder"),
    "Markdown at the end": ({"id": "1", "conversations": talk("What? ![](a.png)")}, "other placeholder"),
    "a tagged path and its end": (llava(conversations=talk("<image>a.png</image>\nWhat?")), "other placeholder"),
    "a tagged film": ({"id": "1", "conversations": talk("See <video>a.mp4</video> well")}, "video or audio"),
    "a video's token": ({"id": "1", "conversations": talk("See <|video_pad|> well")}, "video or audio"),
    "a video tag": ({"id": "1", "conversations": talk("<video>\nWhat?")}, "video or audio"),
    "an audio tag": ({"id": "1", "conversations": talk("<audio>What?")}, "video or audio"),
    "video": ({"id": "1", "video": "a.mp4", "conversations": talk("What?")}, "video or audio"),
    "videos": ({"messages": messages("What?"), "videos": ["a.mp4"]}, "video or audio"),
    "audio": ({"query": "What?", "response": "A", "audio": "a.wav"}, "video or audio"),
    "a part of video": ({"messages": messages([{"type": "video", "video": "a.mp4"}])}, "wrong field"),
    "tools": ({"messages": messages("What?"), "tools": [{"name": "f"}]}, "tools"),
    "calls of tools": (
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
        "turn content",
    ),
    "thoughts": ({"messages": messages("What?", reasoning_content="Hm.")}, "turn content"),
    "rejected": (llava(rejected="B"), "preferences"),
    "rejected_response": ({"messages": messages("What?"), "rejected_response": "B"}, "preferences"),
    "kto_tag": (llava(kto_tag=False), "preferences"),
    "objects": ({"messages": messages("What?"), "objects": {"bbox": [[0, 0, 1, 1]]}}, "objects"),
    "history beside conversations": (llava(history=[["Q", "A"]]), "several layouts"),
    "two conversations": (llava(messages=messages("Other?")), "several layouts"),
    "the picture under another name": ({"image_path": "a.png", "messages": messages("Q?")}, "other picture"),
    "numbered pictures": (llava(image_2="b.png"), "other picture"),
    "a capital": ({"id": "1", "Image": "a.png", "conversations": talk("Q?")}, "other picture"),
    "a field of its own name": ({"id": "1", "scan of today": "a.PNG", "conversations": talk("Q?")}, "other picture"),
    "a film of its own name": ({"id": "1", "clip": "b/a.mp4", "conversations": talk("Q?")}, "video or audio"),
    "System with a capital": (llava(System="Be brief."), "system text"),
    "an empty path": (llava(image=""), "wrong field"),
    "a number as picture": (llava(image=7), "wrong field"),
    "two texts of a turn": (llava(conversations=talk(content="B")), "several layouts"),
    "weights that contradict": (llava(conversations=talk(loss=True, weight=0)), "turn weight"),
    "a weight in words": (llava(conversations=talk(loss="no")), "turn weight"),
    "a weight below zero": (llava(conversations=talk(weight=-1)), "turn weight"),
    "a weight without end": (llava(conversations=talk(weight=float("inf"))), "turn weight"),
    "a question to learn": (
        llava(conversations=[{**talk()[0], "train": True}, talk()[1]]),
        "turn weight",
    ),
    "a flag that is not read": (llava(conversations=talk(mask=True)), "turn weight"),
    "a loss weight": (llava(conversations=talk(loss_weight=0.5)), "turn weight"),
    "parts of a turn to learn": (llava(conversations=talk(train_detail=[{"begin_offset": 0}])), "turn weight"),
    "nothing to learn": (llava(conversations=talk(loss=False)), "nothing to learn"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["json", "parquet"])
@pytest.mark.parametrize("case", NAMED)
def test_what_a_row_cannot_hold_is_named_with_its_row(tmp_path: Path, case: str, form: str) -> None:
    item, kind = NAMED[case]
    items = [llava("first"), item, llava("last")]
    if form == "parquet":
        if case in ("two pictures", "pictures in another order", "a number as picture"):
            pytest.skip("a column holds texts or lists or numbers, never two of them")
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([as_columns(one) for one in items], schema=schema(items)), file)
        report, kept = prepared(tmp_path, file.getvalue(), name="train.parquet")
    else:
        report, kept = prepared(tmp_path, json.dumps(items))
    assert [row.sample_id for row in kept] == ["first", "last"]
    (problem,) = report.problems
    assert problem.row == 2
    assert problem.kind == kind
    assert report.files[0].rows == 3


def as_columns(item: Item) -> Item:
    """Turns as JSON: a column of structs would give every turn the fields of all."""
    return {name: json.dumps(value) if name in ("conversations", "messages") else value for name, value in item.items()}


def schema(items: list[Item]) -> pa.Schema:
    rows = [as_columns(item) for item in items]
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.schema([(name, pa.array([row.get(name) for row in rows]).type) for name in names])


def read(item: Item, *, split: str = "train") -> Row:
    return ItemReader(task="t", split=split, metric="exact", image_root=None, source="f").row(1, item)


@pytest.mark.parametrize(
    ("flags", "weight"),
    [({}, 1.0), ({"loss": False}, 0.0), ({"loss": True}, 1.0), ({"loss": None}, 1.0), ({"weight": 0}, 0.0),
     ({"weight": 1}, 1.0), ({"weight": 0.25}, 0.25), ({"train": False}, 0.0), ({"training": False}, 0.0),
     ({"loss_scale": 2.0}, 2.0), ({"loss": False, "weight": 0}, 0.0), ({"loss": 1, "train": True}, 1.0)],
)  # fmt: skip
def test_an_answer_weighs_what_its_turn_says(flags: Item, weight: float) -> None:
    forms: list[Item] = [
        {"id": "1", "conversations": [*talk("Q?", "one", **flags), *talk("And?", "two")]},
        {"messages": [*messages("Q?", "one", **flags), *messages("And?", "two")]},
        {"conversations": [
            {"from": "user", "value": "Q?", "loss": None}, {"from": "assistant", "value": "one", **flags},
            {"from": "user", "value": "And?"}, {"from": "assistant", "value": "two"}]},
    ]  # fmt: skip
    for item in forms:
        row = read(item)
        assert [turn.weight for turn in row.turns] == [1.0, weight, 1.0, 1.0]
        assert [turn.text for turn in row.turns] == ["Q?", "one", "And?", "two"]


def test_a_weight_is_written_and_read_again(tmp_path: Path) -> None:
    item = llava(conversations=[*talk(answer="one", loss=False), *talk("And?", "two")])
    _, (row,) = prepared(tmp_path, json.dumps([item]))
    assert [turn.weight for turn in row.turns] == [1.0, 0.0, 1.0, 1.0]
    assert [turn.text for turn in row.turns] == ["<image>\nWhat?", "one", "And?", "two"]


def released_place(texts: list[str]) -> list[str]:
    """LLaVA's rule, of preprocess_multimodal in llava/train/train.py, applied to each sentence."""
    placed: list[str] = []
    for text in texts:
        if "<image>" in text:
            text = "<image>\n" + text.replace("<image>", "").strip()
        placed.append(text.strip())
    return placed


@pytest.mark.parametrize("turn", [0, 2, 4])
@pytest.mark.parametrize("place", ["<image>\n{}", "{}\n<image>", "See <image> here: {}", "<image>{}"])
def test_a_picture_stays_at_its_turn(tmp_path: Path, turn: int, place: str) -> None:
    texts = ["One?", "a", "Two?", "b", "Three?", "c"]
    texts[turn] = place.format(texts[turn])
    turns = [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(texts)]
    _, (row,) = prepared(tmp_path, json.dumps([llava(conversations=turns)]))
    assert [one.text for one in row.turns] == released_place(texts)


def test_several_layouts_mixed_in_one_file(tmp_path: Path) -> None:
    items = [{**item, "id": str(at)} for at, item in enumerate(WITH_PICTURE.values())]
    named = [{**item, "id": f"n{at}"} for at, (item, _) in enumerate(NAMED.values())]
    mixed = [one for pair in zip(items, named, strict=False) for one in pair]
    report, rows = prepared(tmp_path, "\n".join(map(json.dumps, mixed)))
    assert len(rows) == len(mixed) / 2
    assert [problem.row for problem in report.problems] == list(range(2, len(mixed) + 1, 2))


def test_fields_that_mean_nothing_are_counted(tmp_path: Path) -> None:
    items = [
        llava("1", topic="shops"),
        llava("2", topic="shops", conversations=talk(mood="gay")),
        llava("3", topic=None),
    ]
    report, _ = prepared(tmp_path, json.dumps(items))
    assert dict(report.files[0].fields) == {"topic": 2, "mood of a turn": 1}
    assert not report.kinds
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["files"][0]["fields_not_read"] == {"topic": 2, "mood of a turn": 1}
    assert any("topic 2, mood of a turn 1" in remark for remark in written["remarks"])


def test_columns_that_mean_nothing_are_counted(tmp_path: Path) -> None:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"messages": messages("Q?"), "vector": [0.5]}] * 2), file)
    report, _ = prepared(tmp_path, file.getvalue(), name="train.parquet")
    assert dict(report.files[0].fields) == {"vector": 2}


def test_pictures_inside_a_column_of_another_name_are_named(tmp_path: Path) -> None:
    rows = [{"messages": messages("Q?"), "photograph": {"bytes": b"x", "path": None}}, {"messages": messages("Q?")}]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    report, kept = prepared(tmp_path, file.getvalue(), name="train.parquet")
    assert [(problem.row, problem.kind) for problem in report.problems] == [(1, "other picture")]
    assert len(kept) == 1


def test_a_picture_inside_a_message_is_the_rows(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (7, 9), "green").save(data, "PNG")
    parts = [{"type": "image", "text": None, "image": {"bytes": data.getvalue(), "path": None}},
             {"type": "text", "text": "What?", "image": None}]  # fmt: skip
    answer = [{"type": "text", "text": "A", "image": None}]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"messages": messages(parts, answer)}]), file)
    report, (row,) = prepared(tmp_path, file.getvalue(), name="train.parquet")
    assert not report.kinds
    assert (row.image, row.width, row.height) == (data.getvalue(), 7, 9)
    assert [turn.text for turn in row.turns] == ["<image>\nWhat?", "A"]


def packed(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def test_every_member_of_an_archive_is_read_or_told(tmp_path: Path) -> None:
    words = json.dumps({"url": "somewhere"}).encode()
    item = json.dumps({"conversations": talk("Q?")}).encode()
    data = packed(
        ("1.json", words), ("1.txt", b"tea"), ("1.cls", b"3"), ("2.json", item), ("2.txt", b"another text"),
        ("3.txt", b"tea"), ("3.mp4", b"film"), ("4.txt", b"tea"), ("4.wav", b"sound"),
    )  # fmt: skip
    test = packed(("1.txt", b"tea"))
    prepared(tmp_path, f"[{ONE}]")
    for name, archive in (("train.tar", data), ("test.tar", test)):
        (tmp_path / name).write_bytes(archive)
    toml = (tmp_path / "s.toml").read_text().replace(".json", ".tar") + 'instruction = "Name it."\n'
    (tmp_path / "s.toml").write_text(toml)
    file = import_stream(read_stream_file(tmp_path / "s.toml"), tmp_path / "tars", max_broken=0.9).files[0]
    rows = list(open_prepared(tmp_path / "tars").tasks[0].train.rows())
    assert [(row.sample_id, row.turns[0].text, row.answers) for row in rows] == [
        ("train/1", "Name it.", ("tea",)),
        ("train/2", "Q?", ("A",)),
    ]
    assert [(problem.row, problem.kind) for problem in file.problems] == [(3, "video or audio"), (4, "video or audio")]
    assert dict(file.fields) == {"url": 1, ".cls": 1, ".txt": 1}


def test_what_was_read_travels_between_processes() -> None:
    """Copies are made by the protocol that pickle follows."""
    reader = ItemReader(task="t", split="train", metric="exact", image_root=None, source="f")
    for item in ({"messages": messages("Q?")}, {"messages": messages("Q?"), "video": "a"}, 7):
        ((number, one),) = distinct_items([(1, item)])
        read = copy.deepcopy(reader).read((number, one))
        again = copy.deepcopy(read)
        assert repr(again) == repr(read)
    assert copy.deepcopy(ItemError("a", "b", rest_lost=True)).rest_lost


REPEATED = [llava("1", conversations=talk(f"<image>\nQ{at}?")) for at in range(3)]


@pytest.mark.parametrize(
    ("ids", "kept", "renewed"),
    [("", ["1", "1~2", "1~3", "1~2~2"], 3), ("auto", ["1", "1~2", "1~3", "1~2~2"], 3),
     ("renew", ["1", "1~2", "1~3", "1~2~2", "1~4"], 4), ("refuse", ["1", "1~2"], 0)],
)  # fmt: skip
@pytest.mark.parametrize("where", ["toml", "task"])
def test_repeated_ids(tmp_path: Path, ids: str, kept: list[str], renewed: int, where: str) -> None:
    items = [*REPEATED, llava("1~2"), REPEATED[1]]
    line = f'ids = "{ids}"' if ids else ""
    report, rows = prepared(tmp_path, json.dumps(items), **{where: line})
    assert [row.sample_id for row in rows] == kept
    assert report.files[0].repeated_ids == renewed
    assert report.files[0].counts.total() == len(items) - len(kept)


def test_a_test_list_refuses_repeated_ids(tmp_path: Path) -> None:
    prepared(tmp_path, json.dumps(REPEATED))
    (tmp_path / "test.json").write_text(json.dumps(REPEATED))
    report = import_stream(read_stream_file(tmp_path / "s.toml"), tmp_path / "again", max_broken=0.9)
    assert [file.kept for file in report.files] == [3, 1]


def test_a_licence_is_told(tmp_path: Path) -> None:
    report, _ = prepared(tmp_path, f"[{ONE}]", toml='licence = "CC BY 4.0"')
    assert [(licence.licence, licence.tasks) for licence in report.licences] == [("CC BY 4.0", ("t",))]
    assert open_prepared(tmp_path / "out").tasks[0].train.card["licence"] == "CC BY 4.0"


@pytest.mark.parametrize(
    ("toml", "words"),
    [('ids = "keep"', "ids = 'keep'; allowed are auto, refuse, renew"), ("ids = 1", "ids = 1"),
     ('orientation = "up"', "orientation = 'up'; allowed are apply, leave"), ('licence = ""', "licence = ''")],
)  # fmt: skip
@pytest.mark.parametrize("where", ["toml", "task"])
def test_a_wrong_choice_is_one_sentence(tmp_path: Path, toml: str, words: str, where: str) -> None:
    with pytest.raises(ConfigError, match=words):
        prepared(tmp_path, f"[{ONE}]", **{where: toml})


def lying() -> tuple[bytes, Image.Image]:
    """A photograph that was stored on its side, and its stored pixels."""
    image = Image.new("RGB", (64, 32), "white")
    image.paste((200, 0, 0), (0, 0, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    return file.getvalue(), Image.open(io.BytesIO(file.getvalue())).convert("RGB")


@pytest.mark.parametrize(("orientation", "size"), [("", (32, 64)), ("apply", (32, 64)), ("leave", (64, 32))])
def test_rows_have_the_size_of_what_is_learned(tmp_path: Path, orientation: str, size: tuple[int, int]) -> None:
    data, stored = lying()
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "phone.jpg").write_bytes(data)
    line = f'orientation = "{orientation}"' if orientation else ""
    report, (row,) = prepared(tmp_path, json.dumps([llava(image="phone.jpg")]), task=line)
    assert row.image is not None
    seen = open_image(row.image, sample_id="1")
    assert (row.width, row.height) == seen.size == size
    if orientation == "leave":
        assert seen.tobytes() == stored.tobytes()
        assert dict(report.files[0].pictures) == {"left": 1}
    else:
        assert row.image == data
        assert dict(report.files[0].pictures) == {"turned": 1}
    assert not report.kinds


def test_a_published_suite_and_stream_are_turned_or_left_too(tmp_path: Path) -> None:
    data, stored = lying()
    suite_trees.pope(tmp_path)
    (tmp_path / "val2014" / "COCO_val2014_01.jpg").write_bytes(data)
    for orientation, done in (("apply", "turned"), ("leave", "left")):
        report = prepare_suite("pope", tmp_path, tmp_path / "out", orientation=orientation)
        assert dict(report.files[0].pictures) == {done: report.files[0].kept}
        row = next(open_suite(tmp_path / "out").test.rows())
        assert row.image is not None
        seen = open_image(row.image, sample_id="1")
        assert (row.width, row.height) == seen.size
        assert (seen.tobytes() == stored.tobytes()) == (orientation == "leave")


def test_what_is_done_to_pictures_is_counted(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "img" / "film.gif", save_all=True, append_images=frames[1:])
    Image.new("I;16", (8, 8), 3000).save(tmp_path / "img" / "scan.png")
    report, rows = prepared(tmp_path, json.dumps([llava("1", image="film.gif"), llava("2", image="scan.png")]))
    assert len(rows) == 2
    assert dict(report.files[0].pictures) == {"first frame": 1, "grey assumed": 1}
    assert [(problem.row, problem.kind) for problem in report.problems] == [(2, "grey assumed")]
    assert report.files[0].counts.total() == 0


FIELDS = ["id", "image", "images", "conversations", "messages", "conversation", "query", "response", "instruction",
          "input", "output", "history", "system", "tools", "video", "answers", "x"]  # fmt: skip
INSIDE = ["from", "value", "role", "content", "type", "text", "image", "loss", "weight", "bytes", "path", "human"]
WORDS = ["", " ", "a", "<image>", "human", "gpt", "user", "assistant", "<img>a</img>"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INSIDE), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(item=st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5))
def test_any_item_becomes_a_row_or_a_named_fault(item: Item) -> None:
    reader = ItemReader(task="t", split="train", metric="exact", image_root=None, source="f")
    ((number, given_item),) = distinct_items([(1, item)])
    found = reader.read((number, given_item)).found
    assert isinstance(found, Row | ItemError)
    if isinstance(found, Row):
        assert [turn.speaker for turn in found.turns] == ["human", "gpt"] * (len(found.turns) // 2)


# ---- tables and archives: nothing of a row is taken for another, and no row stops the reading ------------------------


def texts_of(values: list[bytes]) -> pa.Array:
    """A column of texts whose bytes nobody checks, as some writers leave it."""
    ends = [sum(map(len, values[:at])) for at in range(len(values) + 1)]
    places = pa.array(ends, pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), len(values), [None, places, pa.py_buffer(b"".join(values))])


def table_report(root: Path, columns: dict[str, object]) -> tuple[ImportReport, list[Row]]:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return prepared(root, file.getvalue(), name="train.parquet")


TWICE = '[{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A", "value": "B"}]'
HALF = '[{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A \\ud83d"}]'
SOUND = json.dumps(talk("Q"))
BROKEN_TEXTS: dict[str, tuple[object, str]] = {
    "a byte that is no text": ([SOUND.encode().replace(b"Q", b"\xe9"), SOUND.encode()], "text that is not UTF-8"),
    "a field twice": ([TWICE, SOUND], "'value' twice"),
    "half a character": ([HALF, SOUND], "half of an escaped character"),
    "more behind the list": ([f"{SOUND} {SOUND}", SOUND], "more follows its end"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN_TEXTS)
def test_a_broken_text_in_a_table_is_a_fault_of_its_row(tmp_path: Path, fault: str) -> None:
    values, words = BROKEN_TEXTS[fault]
    column = texts_of(values) if isinstance(values[0], bytes) else values  # type: ignore[index, arg-type]
    report, rows = table_report(tmp_path, {"id": ["1", "2"], "conversations": column})
    assert [row.sample_id for row in rows] == ["2"]
    (problem,) = report.files[0].problems
    assert (problem.row, words in problem.detail) == (1, True), problem.detail


OTHER_PICTURES: dict[str, object] = {
    "paths in a list": [["b.png"], []],
    "paths in objects": [[{"path": "b.png"}], []],
    "an object": [{"path": "b.png"}, None],
    "bytes in objects": [[{"bytes": b"x", "path": None}], []],
    "bytes in a list": [[b"x"], []],
    "a data URI": ["data:image/png;base64,AAAA", ""],
    "texts kept in a dictionary": pa.array(["b.png", ""]).dictionary_encode(),
    "lists of one length": pa.array([["b.png"], [""]], pa.list_(pa.string(), 1)),
}


@pytest.mark.parametrize("form", OTHER_PICTURES)
def test_pictures_under_other_names_are_never_passed_over(tmp_path: Path, form: str) -> None:
    columns = {"id": ["1", "2"], "conversations": [talk("Q"), talk("Q")], "shots": OTHER_PICTURES[form]}
    report, rows = table_report(tmp_path, columns)
    assert [row.sample_id for row in rows] == ["2"]
    assert report.files[0].counts == {"other picture": 1}
    with_picture, more = table_report(tmp_path, {**columns, "image": ["a.png", "a.png"]})  # then it is one field more
    assert [row.width for row in more] == [30, 30]
    assert with_picture.files[0].fields["shots"] > 0


def test_films_in_a_list_are_never_passed_over(tmp_path: Path) -> None:
    items = [{"id": "1", "conversations": talk("Q"), "clips": ["a.mp4"]}, llava("2")]
    report, rows = prepared(tmp_path, json.dumps(items))
    assert [row.sample_id for row in rows] == ["2"]
    assert report.files[0].counts == {"video or audio": 1}


def test_pictures_of_other_endings_in_an_archive_are_named(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in (("a.left.png", b"x"), ("a.json", b'{"conversations": %s}' % SOUND.encode()),
                           ("b.json", b'{"conversations": %s}' % TWICE.encode()),
                           ("c.json", b'{"conversations": %s}' % SOUND.encode())):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    report, rows = prepared(tmp_path, file.getvalue(), name="train.tar")
    assert [row.sample_id for row in rows] == ["train/c"]
    assert report.files[0].counts == {"other picture": 1, "doubled field": 1}


@pytest.mark.parametrize("name", ["systemPrompt", "system-instruction", "System_Instruction", "sys_prompt"])
def test_a_system_text_has_many_names(tmp_path: Path, name: str) -> None:
    report, rows = prepared(tmp_path, json.dumps([llava("1", **{name: "Be brief."}), llava("2")]))
    assert [row.sample_id for row in rows] == ["2"]
    assert report.files[0].counts == {"system text": 1}


@pytest.mark.parametrize("place", ["<image 1>", "<image1>", "<image-1>"])
def test_a_numbered_placeholder_is_no_text(tmp_path: Path, place: str) -> None:
    report, rows = prepared(tmp_path, json.dumps([llava("1", conversations=talk(f"Look at {place}")), llava("2")]))
    assert [row.sample_id for row in rows] == ["2"]
    assert report.files[0].counts == {"other placeholder": 1}
