"""ImageNet in miniature: one emoji, drawn anew each time, is one of a fixed set of classes.

Every class occurs in training and test, as it must for naming; what is split is the augmentation. A variant is a
number; class and number alone decide position, size, turn, background and tint, and its hash decides the partition.
"""

from __future__ import annotations

from functools import cache
from random import Random

from PIL import Image

from components.core.errors import DataError
from components.data.embedded.drawing import SIZE, canvas
from components.data.embedded.facts import Partition, Sample, ask, partition_of
from components.data.embedded.mini_coast.icon import Icon, glyph, icons
from components.data.embedded.mini_coast.prompts import lines
from components.data.embedded.mini_coin.prompts import OBJECT

# All of them belong to the training part of the emoji: no other task tests with them, no caption names them.
_NAMES = """giraffe zebra frog fox cat whale octopus turtle koala rooster spider strawberry pizza banana pineapple
    carrot hamburger doughnut grapes sailboat bicycle helicopter tractor rocket dress backpack mushroom sunflower castle
    lighthouse guitar trumpet"""
CLASSES = tuple(_NAMES.split())
VARIANTS = 400  # per class; about half of them belong to training and a fifth to test
_QUESTION = "What is the object in the picture?"


def variant_source(name: str, number: int) -> str:
    """The id of one variant, which decides its partition and its picture."""
    return f"imagenet/{name}/{number}"


@cache
def _variants(name: str, partition: Partition) -> tuple[str, ...]:
    sources = (variant_source(name, number) for number in range(VARIANTS))
    return tuple(source for source in sources if partition_of(source) == partition)


@cache
def class_icons() -> dict[str, Icon]:
    """Class name -> its emoji."""
    found = {icon.name: icon for icon in icons("train")}
    missing = [name for name in CLASSES if name not in found]
    if missing:
        raise DataError(f"The emoji package does not name {missing[0]!r} as expected; install emoji 2.16.0.")
    return {name: found[name] for name in CLASSES}


def draw_variant(source: str) -> Image.Image:
    """The picture of one variant: a function of its id."""
    rng = Random(source)
    icon = class_icons()[source.split("/")[1]]
    image, _ = canvas((rng.randint(150, 255), rng.randint(150, 255), rng.randint(150, 255)))
    picture = glyph(icon.char)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(rng.uniform(-20, 20), resample=Image.Resampling.BICUBIC, expand=True)
    scale = rng.uniform(90, 190) / max(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    image.paste(picture, (rng.randint(0, SIZE - picture.width), rng.randint(0, SIZE - picture.height)), picture)
    tint = (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))
    return Image.blend(image, Image.new("RGB", image.size, tint), rng.uniform(0, 0.25))


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One object to name; metric "exact" on the whole label."""
    name = rng.choice(CLASSES)
    source = rng.choice(_variants(name, partition))
    return ask(draw_variant(source), lines(_QUESTION, OBJECT), name, metric="exact", source=source)
