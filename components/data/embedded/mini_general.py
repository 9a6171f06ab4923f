"""mini-general: 84 easy questions apart from the streams: objects (yes or no), multiple choice, text alone.

Objects are asked as POPE does (2305.10355): of every picture something that is there, something that is not, and a
third thing by turns, so that exactly half of the answers are yes, and a model that always says yes gets 50. Pictures
come from the sources' test part, which no training split and no caption draws from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from PIL import Image

from components.data.embedded.facts import Sample, ask
from components.data.embedded.mini_coast.capability import make_scene
from components.data.embedded.mini_coast.icon import draw_single, pick_distinct
from components.data.embedded.mini_coast.icon_table import KINDS
from components.data.embedded.mini_coin.photo import draw_photo, photos
from components.data.embedded.mini_coin.scene import a, absent
from components.data.embedded.mini_coin.science import choices, elements
from components.data.rows import Row
from components.data.suite import row_id

YES_NO = "Answer yes or no."
LETTER = "Answer with the letter of the right choice."
_PICTURES, _KIND_CHOICES, _COLOR_CHOICES, _PHOTO_CHOICES, _FACTS = 12, 10, 8, 6, 12
_COLORS = ("red", "yellow", "blue", "green", "brown", "pink", "purple", "orange", "gray")
_SUBJECTS = ("bricks", "coins", "grass", "stones", "space")


def make_rows() -> list[Row]:
    """All rows in their order; the same ones in every process."""
    return [*_objects(), *_choices(), *_facts()]


def _objects() -> Iterator[Row]:
    for picture in range(_PICTURES):
        rng = Random(f"mini-general/objects/{picture}")
        scene = make_scene(rng, "test", low=2, high=4)
        shown, missing = [icon.kind for icon in scene.icons], absent(scene.icons)
        there, gone = rng.sample(shown, 2), rng.sample(missing, 2)
        asked = [(there[0], "yes"), (gone[0], "no"), (there[1], "yes") if picture % 2 else (gone[1], "no")]
        for number, (kind, answer) in enumerate(asked, start=1):
            question = f"Is there {a(kind)} in the picture?\n{YES_NO}"
            sample = ask(scene.image, question, answer, metric="yes_no", source=scene.source)
            yield _row("objects", f"picture{picture:02d}", number, sample)


def _choices() -> Iterator[Row]:
    for number in range(_KIND_CHOICES + _COLOR_CHOICES + _PHOTO_CHOICES):
        rng = Random(f"mini-general/choice/{number}")
        if number < _KIND_CHOICES + _COLOR_CHOICES:
            key = "kind" if number < _KIND_CHOICES else "color"
            icon = pick_distinct(rng, "test", 1, key)[0]
            answer = icon.kind if key == "kind" else str(icon.color)
            question = "What does the picture show?" if key == "kind" else "What color is the thing in the picture?"
            others = tuple(KINDS) if key == "kind" else _COLORS
            image, source = draw_single(rng, icon), icon.source
        else:
            photo = rng.choice([photo for photo in photos("test") if photo.shows is not None])
            question, answer, others = "What does the photograph show?", str(photo.shows), _SUBJECTS
            image, source = draw_photo(rng, photo), photo.source
        yield _row("choice", "picture", number, _lettered(rng, image, question, answer, others, source))


def _facts() -> Iterator[Row]:
    known = elements("test")
    for number in range(_FACTS):
        rng = Random(f"mini-general/text/{number}")
        element = rng.choice(known)
        source = f"bokeh/elements/{element['symbol']}"
        names = [other["name"] for other in known]
        question = f"Which element has the symbol {element['symbol']}?"
        yield _row("text", "symbol", number, _lettered(rng, None, question, element["name"], names, source))
        answer = "yes" if number % 2 else "no"
        named = element if answer == "yes" else rng.choice([other for other in known if other is not element])
        question = f"Is {element['symbol']} the symbol of {named['name']}?\n{YES_NO}"
        yield _row("text", "claim", number, ask(None, question, answer, metric="yes_no", source=source))


def _lettered(
    rng: Random, image: Image.Image | None, question: str, answer: str, others: tuple[str, ...] | list[str], source: str
) -> Sample:
    """A multiple-choice question; the letter is right, and so are the right choice's words."""
    letter, listed = choices(rng, answer, others)
    sample = ask(image, "\n".join((question, *listed, LETTER)), letter, metric="choice", source=source)
    return replace(sample, answers=(letter, answer))


def _row(subset: str, group: str, number: int, sample: Sample) -> Row:
    return sample.row(row_id(subset, group, number), "mini-general", "test")
