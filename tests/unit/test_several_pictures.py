"""Rows of several pictures: every form they are written in, and what becomes of them on disk, in a plan, in a model."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from components.core.errors import DataError
from components.data.prepared import open_prepared, write_stream_json
from components.data.quality.overlaps import overlaps_of
from components.data.quality.report import rows_by_pictures
from components.data.rows import Row, RowPicture, Turn, open_split, verify_split, write_split
from components.data.stream_config import StreamConfig
from components.data.texts import special_tokens
from components.data.validation import held_back
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.models.families.base import FEATURES
from components.training.config import RunConfig
from components.training.feature_writing import FeatureWriter, ShardWork
from components.training.lengths import longer_rows
from components.training.needs import needs_of
from components.training.plan import plan_stream
from components.training.plan_facts import plan_facts
from components.training.streaming import Loader, examples
from components.training.vision_cache import feature_bytes, vision_cache
from components.training.windows import Slice, plan_windows, stretches_of
from tests.families import tiny
from tests.unit.sample_rows import picture, row
from tests.unit.test_wild_rows import Item, llava, messages, prepared, talk

RED, BLUE, GREEN = (picture(colour) for colour in ((250, 0, 0), (0, 0, 250), (0, 250, 0)))
POCKET = BackboneConfig(name="pocket")
SEVERAL = "<image>\n<image>\nSame?"


def shown(*images: bytes, question: str | None = None, **other: object) -> Row:
    """A row that asks about these pictures of 20 x 20 pixels."""
    asked = question or "<image>\n" * len(images) + "Same?"
    first = row(asked, "no", image=images[0] if images else None)
    more = tuple(RowPicture(image, 20, 20) for image in images[1:])
    return replace(first, more_images=more, **other)  # type: ignore[arg-type]


# ---- written by users ----------------------------------------------------------------------------------------------

NAMES = ["a.png", "b.png"]
PARTS = [{"type": "image", "image": name} for name in NAMES] + [{"type": "text", "text": "Same?"}]
FORMS: dict[str, Item] = {
    "LLaVA's image as a list": llava(image=NAMES, conversations=talk(SEVERAL)),
    "images": {"id": "1", "images": NAMES, "conversations": talk(SEVERAL)},
    "image and images": llava(image=NAMES, images=NAMES, conversations=talk(SEVERAL)),
    "structs": {"id": "1", "images": [{"path": name, "bytes": None} for name in NAMES], "conversations": talk(SEVERAL)},
    "LLaVA-NeXT-Interleave": {
        "sample_id": 1, "image": NAMES, "conversations": talk(SEVERAL), "choice_list": None, "metadata": {},
    },
    "no placeholders": {"messages": messages("Same?"), "images": NAMES},
    "parts with paths": {"messages": messages(PARTS)},
    "parts without paths": {"messages": messages([{"type": "image"}, {"type": "image"}, PARTS[2]]), "images": NAMES},
    "ms-swift": {"query": SEVERAL, "response": "A", "images": NAMES},
    "alpaca": {"instruction": "Same?", "output": "A", "images": NAMES},
    "tags of Qwen-VL": {"id": "1", "conversations": talk("<img>a.png</img>\n<img>b.png</img>\nSame?")},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_row(tmp_path: Path, form: str) -> None:
    report, (found,) = prepared(tmp_path, json.dumps([FORMS[form]]), max_broken=0.0)
    assert (found.turns[0].text, found.answers) == (SEVERAL, ("A",))
    files = [(tmp_path / "img" / name).read_bytes() for name in NAMES]
    assert found.pictures == tuple(RowPicture(data, 30, 20) for data in files)
    assert found.images == files
    assert not report.kinds
    assert not report.files[0].fields


def test_placeholders_stay_where_they_are_in_all_questions(tmp_path: Path) -> None:
    asked = ["Left: <image> and right: <image>?", "And <image> here?"]
    turns = [turn for text in asked for turn in talk(text)]
    items = [llava(image=[*NAMES, "a.png"], conversations=turns), llava("2", conversations=talk("See <image> here"))]
    _, (several, single) = prepared(tmp_path, json.dumps(items), max_broken=0.0)
    assert [turn.text for turn in several.turns[::2]] == asked
    assert len(several.images) == 3
    assert several.images[0] == several.images[2]
    assert several.instruction == "Left:  and right: ?"
    assert single.turns[0].text == "<image>\nSee  here"  # as LLaVA does with one picture


def test_a_count_that_differs_is_named(tmp_path: Path) -> None:
    items = [llava(image=NAMES), llava("2", image=NAMES, conversations=talk("<image>" * 3 + "?")), llava("3")]
    report, (kept,) = prepared(tmp_path, json.dumps(items))
    assert kept.sample_id == "3"
    assert [(problem.row, problem.kind, problem.detail) for problem in report.problems] == [
        (1, "placeholders", "the turns hold 1 <image> placeholder for 2 pictures"),
        (2, "placeholders", "the turns hold 3 <image> placeholders for 2 pictures"),
    ]


def test_one_missing_picture_of_two_leaves_the_row_out(tmp_path: Path) -> None:
    items = [llava(image=["a.png", "none.png"], conversations=talk(SEVERAL)), llava("2")]
    report, rows = prepared(tmp_path, json.dumps(items))
    assert [one.sample_id for one in rows] == ["2"]
    assert "none.png is missing" in report.problems[0].detail


@pytest.mark.parametrize(
    "item",
    [
        {"id": "1", "video": "a.mp4", "conversations": talk("<image>\nWhat?")},
        {"messages": messages("What?"), "videos": ["a.mp4"]},
        {"messages": messages([{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What?"}])},
        {"id": "1", "conversations": talk("<video>\nWhat?")},
        {"id": "1", "clip": "a.mp4", "conversations": talk("What?")},
    ],
)
def test_a_video_is_refused_and_its_frames_are_pictures(tmp_path: Path, item: Item) -> None:
    frames = llava("2", image=None, images=[*NAMES, *NAMES], conversations=talk("What happens?"))
    report, (kept,) = prepared(tmp_path, json.dumps([item, frames]))
    assert kept.turns[0].text == "<image>\n" * 4 + "What happens?"
    (problem,) = report.problems
    assert problem.detail.endswith('list the frames of a video as pictures in "images"')


def test_tables_hold_lists_of_pictures(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "images": [{"bytes": RED, "path": None}, {"bytes": BLUE, "path": "x"}], "messages": messages("Q?")},
        {"id": "2", "images": [{"bytes": RED, "path": None}], "messages": messages("Q?")},
        {"id": "3", "images": None, "messages": messages("Q?")},
    ]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    report, found = prepared(tmp_path, file.getvalue(), name="train.parquet", max_broken=0.0)
    assert [one.images for one in found] == [[RED, BLUE], [RED], []]
    assert f"Rows of t train, by number of pictures: {rows_by_pictures({0: 1, 1: 1, 2: 1})}." in report.remarks
    written = json.loads((tmp_path / "out" / "report.json").read_text())["files"]
    assert [one["by_pictures"] for one in written] == [{"0": 1, "1": 1, "2": 1}, {"1": 1}]
    assert [one["with_image"] for one in written] == [2, 1]


def test_tars_hold_numbered_pictures(tmp_path: Path) -> None:
    members = {"k.10.png": GREEN, "k.json": json.dumps(llava()).encode(), "k.2.png": BLUE, "k.1.png": RED}
    members["k.json"] = json.dumps({"conversations": talk("Which?"), "image": ["old/1.png", "old/2.png"]}).encode()
    members |= {"two.json": members["k.json"], "two.png": RED, "two.jpg": BLUE}
    members |= {"same.json": members["k.json"], "same.1.png": RED, "same.1.jpg": BLUE}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    report, (found,) = prepared(tmp_path, file.getvalue(), name="train.tar")
    assert found.images == [RED, BLUE, GREEN]
    assert [problem.kind for problem in report.problems] == ["too many images"] * 2
    assert "number them, as in two.0.jpg" in report.problems[0].detail


def test_a_prepared_stream_can_be_imported_again(tmp_path: Path) -> None:
    items = [llava(image=NAMES, conversations=talk(SEVERAL)), llava("2"), {"id": "3", "conversations": talk("Hi?")}]
    _, rows = prepared(tmp_path, json.dumps(items), max_broken=0.0)
    (tmp_path / "again").mkdir()
    shard = (tmp_path / "out" / "t" / "train" / "part-00000.parquet").read_bytes()
    _, again = prepared(tmp_path / "again", shard, name="train.parquet", max_broken=0.0)
    assert [replace(one, source="") for one in again] == [replace(one, source="") for one in rows]


# ---- on disk -------------------------------------------------------------------------------------------------------


def numbered(count: int, several: dict[int, Row]) -> list[Row]:
    """Rows of which those in `several` have several pictures."""
    plain = shown(RED), shown(question="Hi?")
    return [replace(several.get(at, plain[at % 2]), sample_id=f"r{at}") for at in range(count)]


@pytest.mark.parametrize("places", [(0,), (70, 1500), (2099,)])
def test_rows_survive_wherever_those_of_several_pictures_begin(tmp_path: Path, places: tuple[int, ...]) -> None:
    rows = numbered(2100, dict.fromkeys(places, shown(RED, BLUE, GREEN)))
    split = write_split(iter(rows), tmp_path / "train", task="t", split="train")
    assert [shard.rows for shard in split.shards] == [1024, 1024, 52]
    assert list(split.rows()) == rows
    assert len({tuple(pq.read_schema(path).names) for path in split.shard_paths()}) == 1
    assert {path.suffix for path in split.path.iterdir()} == {".parquet", ".json"}
    assert all(pq.read_metadata(path).row_group(0).num_rows <= 64 for path in split.shard_paths())
    verify_split(split)
    found = [one.pictures for one in split.rows(with_image=False)]
    assert found == [tuple(each._replace(data=None) for each in one.pictures) for one in rows]
    again = write_split(iter(rows), tmp_path / "again", task="t", split="train")
    assert again.digest == split.digest


def test_rows_of_one_picture_keep_their_columns_and_format(tmp_path: Path) -> None:
    """What tells old files apart: other columns or another format would change their digests."""
    plain = write_split(numbered(3, {}), tmp_path / "a", task="t", split="train")
    several = write_split(numbered(3, {1: shown(RED, BLUE)}), tmp_path / "b", task="t", split="train")
    old = ["sample_id", "task", "split", "image", "width", "height", "conversations", "answers", "metric", "source"]
    assert pq.read_schema(plain.shard_paths()[0]).names == old
    assert pq.read_schema(several.shard_paths()[0]).names == [*old, "more_images"]
    formats = [json.loads((split.path / "manifest.json").read_text())["format"] for split in (plain, several)]
    assert formats == ["littoral-rows/1", "littoral-rows/2"]
    assert open_split(several.path).digest == several.digest


# ---- looked at -----------------------------------------------------------------------------------------------------


def noise(seed: int) -> bytes:

    numbers = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(numbers).save(file, "PNG")
    return file.getvalue()


def test_a_second_picture_that_is_shared_is_found(tmp_path: Path) -> None:
    one, two, three, four = map(noise, range(4))
    parts = {
        "train": [shown(one, two), shown(two, one)],
        "test": [shown(three, two), shown(one, two), shown(two, four), shown(four)],
    }
    for part, rows in parts.items():
        named = [replace(each, sample_id=f"{part}-{at}", split=part) for at, each in enumerate(rows)]
        write_split(named, tmp_path / "t" / part, task="t", split=part)
    write_stream_json(tmp_path, "s", {"t": 8})
    (leak,) = overlaps_of(open_prepared(tmp_path)).leaks
    assert (leak.rows, leak.pictured, leak.pictures, leak.questions) == (4, 4, 3, 4)
    assert leak.repeats == 1  # the same pictures in the same order


def test_placeholders_are_no_special_tokens_of_users() -> None:
    talk = (("human", "<image> <image>?"), ("gpt", "a"), ("human", "<image> or <image>?"), ("gpt", "b"))
    turns = tuple(Turn(speaker=speaker, text=text) for speaker, text in talk)
    assert special_tokens(shown(RED, BLUE, GREEN, RED, turns=turns)) == set()
    assert special_tokens(shown(RED, BLUE, GREEN, turns=turns)) == {"<image>"}


def test_rows_that_begin_with_one_picture_are_held_back_together() -> None:
    for seed in range(20):
        sides = {held_back(shown(noise(seed), *more), 0.5) for more in ((), (RED,), (BLUE, RED))}
        assert len(sides) == 1


# ---- planned and learned -------------------------------------------------------------------------------------------


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks; the second has two rows of several pictures, one of them in a later question."""
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path / "cache"))
    later = row("Hi?", "yes", "<image> and <image>?", "no, they are not", image=RED)
    later = replace(later, more_images=(RowPicture(BLUE, 20, 20),))
    for task, rows in {
        "a": [shown(RED)] * 4,
        "b": [shown(RED), shown(question="Hi?"), shown(RED, BLUE, GREEN), later],
    }.items():
        for part in ("train", "test"):
            named = [
                replace(each, sample_id=f"{task}{at}", task=task, split=part, source=f"{task}.json#{at}")
                for at, each in enumerate(rows)
            ]
            write_split(named, tmp_path / "s" / task / part, task=task, split=part)
    write_stream_json(tmp_path / "s", "s", {"a": 8, "b": 8})
    return tmp_path / "s"


def run_config(stream: Path, name: str) -> RunConfig:
    config = RunConfig(
        run_id="r",
        storage=stream.parent / "runs",
        stream=StreamConfig(name=str(stream), data_dir=stream.parent / "data"),
        backbone=BackboneConfig(name=name),
    )
    return replace(config, training=replace(config.training, global_batch_size=4)).with_method("sequential_lora")


def test_a_plan_counts_rows_by_pictures(stream: Path) -> None:
    plan = plan_stream(run_config(stream, "pocket"))
    counts = "1 without a picture, 1 with 1, 1 with 2, 1 with 3"
    assert plan_facts(plan, needs_of(plan))["pictures in a row"] == f"b train {counts}; b test {counts}"
    assert plan.fitted.tokens["b train"].pictures == (1.5, 3)
    encoder = build_encoder(POCKET)
    rows = list(plan.stream.tasks[1].train.rows())
    lengths = [len(encoder.training_example(each).input_ids) for each in rows]
    assert plan.fitted.tokens["b train"].longest == max(lengths)


def test_rows_of_more_pictures_than_a_family_takes_are_named_before_anything_starts(
    stream: Path, tmp_path: Path
) -> None:
    folder = str(tiny.write("llava_onevision", tmp_path / "model"))
    with pytest.raises(DataError) as caught:
        plan_stream(run_config(stream, folder))
    assert str(caught.value) == (
        f"backbone {folder!r} takes at most 1 picture in a row, and 4 rows have more: b train row 3 (b.json#2): 3 "
        "pictures; b train row 4 (b.json#3): 2 pictures; b test row 3 (b.json#2): 3 pictures; b test row 4 (b.json#3): "
        "2 pictures. Leave them out or choose another backbone."
    )
    said = longer_rows(BackboneConfig(name=folder), open_prepared(stream).tasks[1].train)
    assert said.endswith("; it takes at most 1 picture in a row, and 2 have more.")
    with pytest.raises(DataError, match=r"row b2 has 3 pictures, but backbone .* takes at most 1 picture in a row"):
        build_encoder(BackboneConfig(name=folder)).training_example(shown(RED, BLUE, GREEN, sample_id="b2"))


def test_cached_features_of_two_pictures_are_the_towers_own(tmp_path: Path) -> None:
    """Pictures are shared between rows and places; each is computed once and comes back at its place."""
    rows = [shown(RED, BLUE, sample_id="a"), shown(BLUE, sample_id="b"), shown(BLUE, GREEN, RED, sample_id="c")]
    split = write_split(rows, tmp_path / "train", task="t", split="train")
    cache = vision_cache(POCKET, tmp_path / "cache", "0123456789abcdef")
    work = ShardWork(split=split, shard=0, rows={0: [0, 1, 2]})
    assert FeatureWriter(POCKET, cache)({"work": np.array([work], dtype=object)}) == {"pictures": [3]}
    assert cache.holds(split, 0, 0, [0, 1, 2])
    loader = Loader(splits=(split,), backbone=POCKET, mode="train", slice=Slice(), num_rows=3, cache=cache)
    windows = plan_windows([split], epochs=1, num_rows=3, seed=None)
    (block,) = loader({"stretch": np.array(stretches_of(windows), dtype=object)})
    model, encoder = load_backbone(POCKET), build_encoder(POCKET)
    for found, source in zip(examples(block.to_pylist()), rows, strict=True):
        example = encoder.training_example(source)
        assert torch.equal(found.input_ids, example.input_ids)
        expected = model.picture_features(example.pictures)
        assert len(found.pictures) == len(source.images)
        for each, features in zip(found.pictures, expected, strict=True):
            torch.testing.assert_close(each.tensors[FEATURES], features)
        size = expected[0].numel() * expected[0].element_size()
        assert feature_bytes([(split, {(0, 0): [0, 2]})], POCKET) == 5 * size
