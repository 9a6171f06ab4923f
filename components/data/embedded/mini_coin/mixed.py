"""VQAv2 in miniature: groups of emoji on a photograph or a plain ground; yes/no 40 %, counts 30 %, others 30 %."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image

from components.data.embedded.drawing import SIZE, canvas
from components.data.embedded.facts import Partition, Sample, ask
from components.data.embedded.mini_coast.icon import Icon, paste, pick_distinct
from components.data.embedded.mini_coast.prompts import SHORT, lines
from components.data.embedded.mini_coin.photo import Photo, draw_photo, photos
from components.data.embedded.mini_coin.scene import a, absent

_PLURALS = {"food": "pieces of food", "clothing": "pieces of clothing"}
_FADE = 0.4  # of white over a photograph, so that the emoji stand out
_CELL = 74


@dataclass(frozen=True, kw_only=True)
class Group:
    """`count` copies of one emoji."""

    icon: Icon
    count: int


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Two or three groups of different kinds, nine copies at most, and the photograph behind them (None: plain)."""

    groups: tuple[Group, ...]
    photo: Photo | None

    @property
    def source(self) -> str:
        behind = [] if self.photo is None else [self.photo.source]
        return ";".join([*(group.icon.source for group in self.groups), *behind])


def plural(kind: str) -> str:
    """How a question names several things of a kind."""
    return _PLURALS.get(kind, f"{kind}s")


def make_mixture(rng: Random, partition: Partition) -> Mixture:
    """Draw the facts of one picture (no pixels yet)."""
    shown = pick_distinct(rng, partition, rng.randint(2, 3), "kind")
    photo = rng.choice(photos(partition)) if rng.random() < 0.6 else None
    return Mixture(groups=tuple(Group(icon=one, count=rng.randint(1, 3)) for one in shown), photo=photo)


def draw_mixture(rng: Random, mixture: Mixture) -> Image.Image:
    """The copies in random cells of a 3 x 3 grid."""
    if mixture.photo is None:
        image, _ = canvas((rng.randint(225, 255), rng.randint(225, 255), rng.randint(225, 255)))
    else:
        image = draw_photo(rng, mixture.photo)
        image = Image.blend(image, Image.new("RGB", image.size, (255, 255, 255)), _FADE)
    copies = [group.icon for group in mixture.groups for _ in range(group.count)]
    for cell, icon in zip(rng.sample(range(9), len(copies)), copies, strict=True):
        center = (SIZE / 2 + _CELL * (cell % 3 - 1), SIZE / 2 + _CELL * (cell // 3 - 1))
        paste(image, icon, (center[0] + rng.randint(-3, 3), center[1] + rng.randint(-3, 3)), 62)
    return image


def _yes_no(rng: Random, groups: tuple[Group, ...]) -> tuple[str, str]:
    answer = rng.choice(("yes", "no"))
    unequal = [(one, two) for one in groups for two in groups if one.count > two.count]
    if unequal and rng.random() < 0.5:
        more, fewer = rng.choice(unequal)
        first, second = (more, fewer) if answer == "yes" else (fewer, more)
        return f"Are there more {plural(first.icon.kind)} than {plural(second.icon.kind)}?", answer
    shown = [group.icon for group in groups]
    kind = rng.choice([icon.kind for icon in shown] if answer == "yes" else absent(shown))
    return f"Is there {a(kind)} in the picture?", answer


def _other(rng: Random, mixture: Mixture) -> tuple[str, str] | None:
    """The photograph's subject, a colour, or the commonest kind; None when the picture carries none of them."""
    possible: list[tuple[str, str]] = []
    if mixture.photo is not None and mixture.photo.shows is not None:
        possible.append(("What is in the background?", mixture.photo.shows))
    colored = [group.icon for group in mixture.groups if group.icon.color is not None]
    if colored:
        one = rng.choice(colored)
        possible.append((f"What color is the {one.kind}?", str(one.color)))
    first, second = sorted(mixture.groups, key=lambda group: -group.count)[:2]
    if first.count > second.count:
        possible.append(("What kind of thing is there most of?", first.icon.kind))
    return rng.choice(possible) if possible else None


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One question; metric "exact"."""
    mixture = make_mixture(rng, partition)
    kind = rng.choices(("yes/no", "count", "other"), weights=(40, 30, 30))[0]
    if kind == "yes/no":
        question, answer = _yes_no(rng, mixture.groups)
    elif kind == "other":
        while (asked := _other(rng, mixture)) is None:
            mixture = make_mixture(rng, partition)
        question, answer = asked
    elif rng.random() < 0.5:
        question, answer = "How many things are drawn?", str(sum(group.count for group in mixture.groups))
    else:
        group = rng.choice(mixture.groups)
        question, answer = f"How many {plural(group.icon.kind)} are there?", str(group.count)
    image = draw_mixture(rng, mixture)
    return ask(image, lines(question, SHORT), answer, metric="exact", source=mixture.source)
