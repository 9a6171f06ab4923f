"""Grounding (REC) in miniature: the box of a described thing among four."""

from __future__ import annotations

from collections import Counter
from random import Random

from components.data.embedded.drawing import SIZE, canvas
from components.data.embedded.facts import Partition, Sample, ask
from components.data.embedded.mini_coast.capability import Box, Scene, box_text
from components.data.embedded.mini_coast.icon import paste, pick_distinct
from components.data.embedded.mini_coin.prompts import BOX

_CLEARLY = 24  # pixels by which the outermost thing must lead


def make_scene(rng: Random, partition: Partition) -> Scene:
    """Four emoji of different kinds, one per quarter of the picture, of different sizes and off its middle."""
    image, _ = canvas()
    shown = pick_distinct(rng, partition, 4, "kind")
    half = SIZE / 2
    boxes: list[Box] = []
    for index, one in enumerate(shown):
        side = rng.uniform(56, 100)
        slack = half / 2 - side / 2 - 2
        center = (
            half * (index % 2 + 0.5) + rng.uniform(-slack, slack),
            half * (index // 2 + 0.5) + rng.uniform(-slack, slack),
        )
        boxes.append(paste(image, one, center, side))
    return Scene(image=image, icons=tuple(shown), boxes=tuple(boxes))


def descriptions(scene: Scene) -> list[tuple[str, int]]:
    """Every phrase that fits exactly one thing, with that thing's number."""
    found = [(f"the {one.kind}", index) for index, one in enumerate(scene.icons)]
    counts = Counter(one.color for one in scene.icons)
    if None not in counts:  # a thing without one clear colour might be called by any
        found += [(f"the {one.color} thing", index) for index, one in enumerate(scene.icons) if counts[one.color] == 1]
    for word, corner, sign in (("leftmost", 0, 1), ("rightmost", 2, -1), ("highest", 1, 1), ("lowest", 3, -1)):
        order = sorted(range(len(scene.boxes)), key=lambda index: sign * scene.boxes[index][corner])
        first, second = (scene.boxes[index][corner] for index in order[:2])
        if abs(first - second) >= _CLEARLY:
            found.append((f"the {word} thing", order[0]))
    return found


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One box to give; metric "iou"."""
    scene = make_scene(rng, partition)
    phrase, index = rng.choice(descriptions(scene))
    return ask(scene.image, BOX + phrase, box_text(scene.boxes[index]), metric="iou", source=scene.source)
