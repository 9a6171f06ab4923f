"""What splits share: look-alike pictures and equal questions."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from components.data.quality.overlaps import Overlap, Shared, overlaps_of, picture_hash
from components.data.rows import Row, Turn, write_split
from components.data.tasks import Task, TaskStream


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scene(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Smooth random colours."""
    fields = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(fields).resize(size, Image.Resampling.BICUBIC)


def test_a_copy_keeps_its_hash_and_another_picture_has_another() -> None:
    scenes = [scene(seed) for seed in range(20)]
    hashes = [picture_hash(encoded(image)) for image in scenes]
    assert len(set(hashes)) == 20
    copies = [encoded(image.resize((192, 128)), "PNG") for image in scenes]
    jpegs = [encoded(image, "JPEG", quality=90) for image in scenes]
    same = sum(picture_hash(copy) == found for copy, found in zip(copies, hashes, strict=True))
    recoded = sum(picture_hash(copy) == found for copy, found in zip(jpegs, hashes, strict=True))
    assert same >= 12  # equal hashes miss some copies, and the module says so
    assert recoded >= 12
    mirrored = scenes[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert picture_hash(encoded(mirrored)) != hashes[0]


def test_a_hash_by_hand() -> None:
    """Brighter to the left in the upper half, darker in the lower: ones, then zeros."""
    ramp = np.linspace(250, 5, 9 * 8).reshape(1, -1).repeat(32, axis=0)
    image = Image.fromarray(np.concatenate([ramp, ramp[:, ::-1]]).astype(np.uint8))
    assert picture_hash(encoded(image)) == (0xFFFFFFFF_00000000, False)


@pytest.mark.parametrize("shade", [0, 255, (200, 10, 10)])
def test_a_blank_picture_is_known_as_such(shade: int) -> None:
    mode = "RGB" if isinstance(shade, tuple) else "L"
    assert picture_hash(encoded(Image.new(mode, (40, 30), shade)))[1]


def dotted(at: int, size: tuple[int, int] = (90, 80)) -> Image.Image:
    """A white page with one small dot."""
    page = Image.new("L", size, 255)
    page.paste(0, (at, at, at + 6, at + 6))
    return page


def test_a_nearly_blank_picture_is_known_as_such() -> None:
    assert picture_hash(encoded(dotted(20)))[1]
    ramp = np.linspace(255, 238, 90).reshape(1, -1).repeat(80, axis=0).astype(np.uint8)
    assert picture_hash(encoded(Image.fromarray(ramp)))[1], "two grey levels a field are no contrast"


def test_what_is_see_through_is_white() -> None:
    image = scene(3).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert picture_hash(encoded(image))[1]


def test_a_picture_is_hashed_as_it_is_learned() -> None:
    """Upright as EXIF says, and grey of 16 bits by its whole range."""
    upright, turned = io.BytesIO(), io.BytesIO()
    scene(5).save(upright, "PNG")
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees to the right
    scene(5).transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    assert picture_hash(turned.getvalue()) == picture_hash(upright.getvalue()) is not None
    grey = scene(6).convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert picture_hash(encoded(deep)) == picture_hash(encoded(grey)) is not None


def row(sample_id: str, question: str, image: bytes | None, *, task: str, split: str) -> Row:
    return Row(
        sample_id=sample_id,
        task=task,
        split=split,
        turns=(
            Turn(speaker="human", text=f"<image>\n{question}" if image else question),
            Turn(speaker="gpt", text="yes"),
        ),
        answers=("yes",),
        metric="exact",
        source="f#1",
        image=image,
        width=96 if image else None,
        height=64 if image else None,
    )


Content = dict[tuple[str, str], list[tuple[str, str, bytes | None]]]


def stream_of(content: Content, folder: Path) -> TaskStream:
    """Rows of (id, question, picture) by task and split."""
    splits = {
        (task, split): write_split(
            [row(*parts, task=task, split=split) for parts in rows], folder / task / split, task=task, split=split
        )
        for (task, split), rows in content.items()
    }
    names = dict.fromkeys(task for task, _ in content)
    return TaskStream(
        name="s",
        tasks=tuple(
            Task(name=name, train=splits[name, "train"], test=splits[name, "test"], max_new_tokens=4) for name in names
        ),
    )


def test_shared_pictures_and_questions_are_told_by_split(tmp_path: Path) -> None:
    pictures = [encoded(scene(seed)) for seed in range(4)]
    content: Content = {
        ("a", "train"): [("a1", "What is it?", pictures[0]), ("a2", "Why?", pictures[1])],
        ("a", "test"): [("a3", "who is it?", pictures[2])],
        ("b", "train"): [("b1", " what  is it? ", encoded(scene(1), "BMP")), ("b2", "When?", None)],
        ("b", "test"): [("b3", "Where?", pictures[3])],
    }
    found = overlaps_of(stream_of(content, tmp_path))
    wanted = Overlap(
        first="a train", second="b train", rows=2, pictured=1, pictures=1, questions=1, repeats=0, near_blank=0,
        examples=(("a2", "b1"),),
    )  # fmt: skip
    assert found == Shared(pairs=(wanted,), leaks=())


def test_sixteen_of_sixteen(tmp_path: Path) -> None:
    """A thousand rows about one picture are a thousand rows, and the sentence says so."""
    shown = [encoded(scene(seed)) for seed in range(3)]
    content: Content = {
        ("t", "train"): [(f"a{at}", f"Which {at}?", shown[at % 3]) for at in range(20)],
        ("t", "test"): [(f"b{at}", f"Which {at % 5}?", encoded(scene(at % 3), "BMP")) for at in range(16)],
    }
    found = overlaps_of(stream_of(content, tmp_path))
    [pair], [leak] = found.pairs, found.leaks
    assert (pair.first, pair.second, pair.rows, pair.pictures, pair.questions) == ("t train", "t test", 16, 16, 16)
    repeats = sum((at % 5) % 3 == at % 3 for at in range(16))  # "Which 4?" was asked of picture 1
    assert (leak.pictures, leak.questions, leak.repeats, leak.near_blank) == (16, 16, repeats, 0)
    assert leak.sentence == (
        f"t: 16 of 16 test rows look like a training picture, 16 of 16 ask a training question, "
        f"{repeats} of 16 ask it about such a picture"
    )


def test_nearly_blank_pictures_are_counted_apart(tmp_path: Path) -> None:
    """A page with a dot is like every other one by its hash; the same file is the same picture, however blank."""
    small, large = encoded(dotted(20)), encoded(dotted(40, (180, 160)))
    content: Content = {
        ("t", "train"): [("a1", "What is it?", small), ("a2", "Why?", encoded(scene(1)))],
        ("t", "test"): [
            ("b1", "Who?", large),
            ("b2", "Where?", small),
            ("b3", "When?", encoded(Image.new("L", (9, 9)))),
        ],
    }
    [pair] = overlaps_of(stream_of(content, tmp_path)).pairs
    assert (pair.pictures, pair.near_blank, pair.examples) == (1, 2, (("a1", "b2"),))


def test_text_alone_repeats_its_question(tmp_path: Path) -> None:
    content: Content = {
        ("t", "train"): [("a1", "Who wrote it?", None), ("a2", "What?", encoded(scene(1)))],
        ("t", "test"): [("b1", "who wrote it?", None), ("b2", "What?", encoded(scene(2)))],
    }
    [leak] = overlaps_of(stream_of(content, tmp_path)).leaks
    assert (leak.rows, leak.pictured, leak.pictures, leak.questions, leak.repeats) == (2, 1, 0, 2, 1)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(0, 5), st.integers(0, 4)), max_size=40))
def test_counts_equal_a_loop_over_all_pairs_of_rows(tmp_path: Path, drawn: list[tuple[str, bool, int, int]]) -> None:
    """Pictures 0 to 3 have contrast, 4 is nearly blank, 5 is none."""
    shown = [*(encoded(scene(seed)) for seed in range(4)), encoded(dotted(30)), None]
    content: Content = {(task, split): [] for task in "ab" for split in ("train", "test")}
    for at, (task, trained, picture, question) in enumerate(drawn):
        content[task, "train" if trained else "test"].append((str(at), f"Which {question}?", shown[picture]))
    found = overlaps_of(stream_of(content, tmp_path))
    pairs = {(pair.first, pair.second): pair for pair in found.pairs}
    rows = {f"{task} {split}": given for (task, split), given in content.items()}
    for first, second in combinations(rows, 2):
        one, other = (second, first) if (first[2:], second[2:]) == ("test", "train") else (first, second)
        like = [
            (pictures, questions, both)
            for pictures, questions, both in (_like(mine, rows[one]) for mine in rows[other])
        ]
        counts = tuple(sum(column) for column in zip(*like, strict=True)) if like else (0, 0, 0)
        pair = pairs.get((one, other))
        assert counts == ((pair.pictures, pair.questions, pair.repeats) if pair else (0, 0, 0))
    trained = rows["a train"] + rows["b train"]
    leaks = {leak.task: leak for leak in found.leaks}
    for task in "ab":
        like = [_like(mine, trained) for mine in rows[f"{task} test"]]
        leak = leaks.get(task)
        assert [sum(column) for column in zip(*like, strict=True)] == (
            [leak.pictures, leak.questions, leak.repeats] if leak else [0, 0, 0] if like else []
        )


def _like(mine: tuple[str, str, bytes | None], others: list[tuple[str, str, bytes | None]]) -> tuple[bool, bool, bool]:
    """Whether a row's picture, its question, and both are those of any other row."""
    _, question, picture = mine
    return (
        picture is not None and any(picture == other for _, _, other in others),
        any(question == other for _, other, _ in others),
        any((question, picture) == (asked, other) for _, asked, other in others),
    )
