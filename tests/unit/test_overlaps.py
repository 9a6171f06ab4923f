"""What splits share: look-alike pictures and equal questions."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.data.overlaps import Overlap, overlaps_of, picture_hash
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
    assert picture_hash(encoded(image)) == 0xFFFFFFFF_00000000


@pytest.mark.parametrize("shade", [0, 255, (200, 10, 10)])
def test_a_blank_picture_has_no_hash(shade: int) -> None:
    mode = "RGB" if isinstance(shade, tuple) else "L"
    assert picture_hash(encoded(Image.new(mode, (40, 30), shade))) is None


def test_what_is_see_through_is_white() -> None:
    image = scene(3).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert picture_hash(encoded(image)) is None


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


def test_shared_pictures_and_questions_are_told_by_split(tmp_path: Path) -> None:
    pictures = [encoded(scene(seed)) for seed in range(4)]
    content = {
        ("a", "train"): [("a1", "What is it?", pictures[0]), ("a2", "Why?", pictures[1])],
        ("a", "test"): [("a3", "who is it?", pictures[2])],
        ("b", "train"): [("b1", " what  is it? ", encoded(scene(1), "BMP")), ("b2", "When?", None)],
        ("b", "test"): [("b3", "Where?", pictures[3])],
    }
    splits = {
        (task, split): write_split(
            [row(*parts, task=task, split=split) for parts in rows], tmp_path / task / split, task=task, split=split
        )
        for (task, split), rows in content.items()
    }
    tasks = tuple(
        Task(name=name, train=splits[name, "train"], test=splits[name, "test"], max_new_tokens=4) for name in "ab"
    )
    [found] = overlaps_of(TaskStream(name="s", tasks=tasks))
    wanted = Overlap(first="a train", second="b train", pictures=1, questions=1, examples=(("a2", "b1"),))
    assert found == wanted
