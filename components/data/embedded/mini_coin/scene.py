"""GQA in miniature: a scene of two to four emoji, asked for relations, attributes and what there is."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

from components.data.embedded.facts import Partition, Sample, ask
from components.data.embedded.mini_coast.capability import Scene, make_scene
from components.data.embedded.mini_coast.icon import Icon
from components.data.embedded.mini_coast.icon_table import KINDS
from components.data.embedded.mini_coast.prompts import SHORT, lines

_WEIGHTS = {"neighbour": 40, "color": 25, "exists": 20, "left of": 15}


def a(kind: str) -> str:
    """A kind of thing with its article: what a question asks for."""
    if kind in ("food", "clothing"):
        return f"any {kind}"
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def absent(icons: Collection[Icon]) -> list[str]:
    """Kinds that are clearly not among `icons`: what a question with the answer "no" may ask for."""
    names, present = {icon.name for icon in icons}, {icon.kind for icon in icons}
    if present & {"food", "plant", "animal"} or "house with garden" in names:
        present |= {"food", "plant"}  # a carrot is a plant too, a lobster is food, and the garden has a tree
    return [kind for kind in KINDS if kind not in present]


def neighbour(scene: Scene, index: int, side: str) -> str | None:
    """Kind of the thing next to number `index` on that side; None at the edge."""
    place = index - 1 if side == "left" else index + 1
    return scene.icons[place].kind if 0 <= place < len(scene.icons) else None


def _question(rng: Random, scene: Scene) -> tuple[str, str]:
    kind = rng.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))[0]
    colored = [one for one in scene.icons if one.color is not None]
    if kind == "color" and colored:
        one = rng.choice(colored)
        assert one.color is not None
        return f"What color is the {one.kind}?", one.color
    if kind == "exists":
        answer = rng.choice(("yes", "no"))
        asked = rng.choice([one.kind for one in scene.icons] if answer == "yes" else absent(scene.icons))
        return f"Is there {a(asked)} in the scene?", answer
    if kind == "left of":
        first, second = rng.sample(range(len(scene.icons)), 2)
        answer = "yes" if first < second else "no"
        return f"Is the {scene.icons[first].kind} to the left of the {scene.icons[second].kind}?", answer
    side = rng.choice(("left", "right"))
    last = len(scene.icons) - 1
    index = rng.randint(1, last) if side == "left" else rng.randint(0, last - 1)
    answer = neighbour(scene, index, side)
    assert answer is not None
    return f"What comes next to the {side} of the {scene.icons[index].kind}?", answer


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One question about a scene; metric "exact"."""
    scene = make_scene(rng, partition, low=2, high=4)
    question, answer = _question(rng, scene)
    return ask(scene.image, lines(question, SHORT), answer, metric="exact", source=scene.source)
