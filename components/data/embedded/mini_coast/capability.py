"""The capability stream: one kind of scene, four ways of answering (conversation, detail, reasoning, referring)."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image

from components.data.embedded.drawing import SIZE, canvas
from components.data.embedded.facts import Partition, Sample, ask
from components.data.embedded.mini_coast import chart, icon
from components.data.embedded.mini_coast.icon import Icon, paste
from components.data.embedded.mini_coast.prompts import BOX, SHORT, lines
from components.data.rows import IMAGE_TOKEN, Turn

Box = tuple[int, int, int, int]

_CLEARLY_ABOVE = 24  # pixels between two middles: anything less is not clearly "above"
_NUMBERS = ("0", "1", "2", "3", "4", "5")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Icons from left to right (then downwards), each of another kind, with their boxes in pixels."""

    image: Image.Image
    icons: tuple[Icon, ...]
    boxes: tuple[Box, ...]

    @property
    def source(self) -> str:
        return ";".join(icon.source for icon in self.icons)


def box_text(box: Box) -> str:
    """A box as the answers write it: corners as shares of the picture, 2 decimals."""
    return "[" + ",".join(f"{min(1.0, max(0.0, value / SIZE)):.2f}" for value in box) + "]"


def make_scene(rng: Random, partition: Partition, *, low: int, high: int) -> Scene:
    """`low` to `high` icons of different kinds in columns of equal width, each at its own height."""
    image, _ = canvas()
    shown = icon.pick_distinct(rng, partition, rng.randint(low, high), "kind")
    pitch = SIZE / len(shown)
    side = min(100.0, pitch - 6)
    boxes = []
    for index, one in enumerate(shown):
        center = (pitch * (index + 0.5), rng.uniform(side / 2 + 4, SIZE - side / 2 - 4))
        boxes.append(paste(image, one, center, side))
    return Scene(image=image, icons=tuple(shown), boxes=tuple(boxes))


def make_referring(rng: Random, partition: Partition) -> Sample:
    """The box of a named thing; metric "iou"."""
    scene = make_scene(rng, partition, low=2, high=3)
    index = rng.randrange(len(scene.icons))
    question = lines(f"Where is the {scene.icons[index].kind}?", BOX)
    return ask(scene.image, question, box_text(scene.boxes[index]), metric="iou", source=scene.source)


def make_detail(rng: Random, partition: Partition) -> Sample:
    """All objects from left to right; the accepted answers are the objects, metric "recall"."""
    scene = make_scene(rng, partition, low=2, high=4)
    objects = tuple(one.kind for one in scene.icons)
    turns = (
        Turn(speaker="human", text=f"{IMAGE_TOKEN}\nDescribe in detail every object you see, from left to right."),
        Turn(speaker="gpt", text=", ".join(objects)),
    )
    return Sample(image=scene.image, turns=turns, answers=objects, metric="recall", source=scene.source)


def make_reasoning(rng: Random, partition: Partition) -> Sample:
    """A question that needs two facts of the picture; metric "exact" or "yes_no"."""
    if rng.random() < 0.5:
        return _reason_over_chart(rng, partition)
    scene = make_scene(rng, partition, low=2, high=4)
    anchor = rng.randrange(len(scene.icons))
    pairs = [
        (one, two)
        for one in range(len(scene.icons))
        for two in range(len(scene.icons))
        if abs(_middle(scene.boxes[one]) - _middle(scene.boxes[two])) >= _CLEARLY_ABOVE
    ]
    if pairs and rng.random() < 0.5:
        first, second = rng.choice(pairs)
        higher = _middle(scene.boxes[first]) < _middle(scene.boxes[second])
        question = f"Is the {scene.icons[first].kind} above the {scene.icons[second].kind}?"
        answer, metric = ("yes" if higher else "no"), "yes_no"
    else:
        side = rng.choice(("left", "right"))
        count = anchor if side == "left" else len(scene.icons) - 1 - anchor
        question = f"How many objects are {side} of the {scene.icons[anchor].kind}?"
        answer, metric = _NUMBERS[count], "exact"
    return ask(scene.image, lines(f"{question} Think, then answer.", SHORT), answer, metric=metric, source=scene.source)


def _middle(box: Box) -> float:
    return (box[1] + box[3]) / 2


def _reason_over_chart(rng: Random, partition: Partition) -> Sample:
    drawn = chart.make_chart(rng, partition, kind="bar")
    highest, lowest = drawn.colors.index(drawn.highest), drawn.colors.index(drawn.lowest)
    if rng.random() < 0.5:
        question, answer = "Is the highest bar left of the lowest bar?", "yes" if highest < lowest else "no"
        metric = "yes_no"
    else:
        color = rng.choice(drawn.colors)
        value = drawn.marks[drawn.colors.index(color)].value
        question = f"How many bars are higher than the {color} bar?"
        answer, metric = _NUMBERS[sum(mark.value > value for mark in drawn.marks)], "exact"
    image = chart.draw_chart(drawn)
    return ask(image, lines(f"{question} Think, then answer.", SHORT), answer, metric=metric, source=drawn.source)


def make_conversation(rng: Random, partition: Partition) -> Sample:
    """Two turns about one picture, the second building on the first; metric "exact" for the second answer."""
    if rng.random() < 0.5:
        drawn = chart.make_chart(rng, partition, kind=rng.choice(("bar", "pie")))
        noun = "bars" if drawn.kind == "bar" else "slices"
        mark, extreme = ("bar", "tallest") if drawn.kind == "bar" else ("slice", "biggest")
        asked = (
            (f"Hi! How many {noun} do you see?", str(len(drawn.marks))),
            (f"And the {extreme} {mark}'s color?", drawn.highest),
        )
        image, source = chart.draw_chart(drawn), drawn.source
    else:
        scene = make_scene(rng, partition, low=2, high=4)
        side = rng.choice(("left", "right"))
        last = scene.icons[0 if side == "left" else -1].kind
        asked = (("Hi! How many objects do you see?", str(len(scene.icons))), (f"And what is on the far {side}?", last))
        image, source = scene.image, scene.source
    (first, reply), (second, answer) = asked
    turns = (
        Turn(speaker="human", text=lines(IMAGE_TOKEN, first, SHORT)),
        Turn(speaker="gpt", text=reply),
        Turn(speaker="human", text=second),
        Turn(speaker="gpt", text=answer),
    )
    return Sample(image=image, turns=turns, answers=(answer,), metric="exact", source=source)
