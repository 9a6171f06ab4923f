"""TextVQA in miniature: a sign with real town and airport names in front of a real photograph, OCR tokens given.

The signs are typeset by us, so the tokens are known rather than recognised. With one sign the tokens nearly give the
answer away; with two, only the picture shows which sign is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from PIL import Image, ImageDraw

from components.data.embedded.drawing import COLORS, INK, fit_text
from components.data.embedded.facts import Partition, Sample, ask, partition_of, sampledata
from components.data.embedded.mini_coast.prompts import SHORT, lines
from components.data.embedded.mini_coin.photo import draw_photo, photos

_SHORTEST, _LONGEST = 4, 12  # letters of a name: longer ones would be too small on a sign
_SHARE_AIRPORT = 0.4


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One board: its colour, its lines from the top, and the rows of the tables they come from."""

    color: str
    texts: tuple[str, ...]
    source: str


def _plain(name: str) -> bool:
    return _SHORTEST <= len(name) <= _LONGEST and name.isascii() and name.replace(" ", "").isalpha()


@cache
def airports(partition: Partition) -> tuple[tuple[str, str, str], ...]:
    """(city, code, source) of the airports of one partition."""
    rows = [(row["City"], row["IATA"], f"bokeh/airports/{row['AirportID']}") for row in sampledata("airports.csv")]
    return tuple(row for row in rows if _plain(row[0]) and len(row[1]) == 3 and partition_of(row[2]) == partition)


@cache
def towns(partition: Partition) -> tuple[tuple[str, str], ...]:
    """(name, source) of the towns of one partition; towns of one name count as one."""
    names = dict.fromkeys(row["name"] for row in sampledata("world_cities.csv.gz") if _plain(row["name"]))
    sources = ((name, f"bokeh/world_cities/{name}") for name in names)
    return tuple(row for row in sources if partition_of(row[1]) == partition)


def make_signs(rng: Random, partition: Partition) -> tuple[Sign, ...]:
    """An airport board with town and code, or two town boards of different colours."""
    colors = rng.sample(list(COLORS), 2)
    if rng.random() < _SHARE_AIRPORT:
        city, code, source = rng.choice(airports(partition))
        return (Sign(color=colors[0], texts=(city, code), source=source),)
    named = rng.sample(towns(partition), 2)
    return tuple(
        Sign(color=color, texts=(name,), source=source) for color, (name, source) in zip(colors, named, strict=True)
    )


def draw_signs(image: Image.Image, signs: tuple[Sign, ...], rng: Random) -> None:
    """Boards on two posts in front of `image`."""
    pen = ImageDraw.Draw(image)
    left, right = rng.randint(6, 14), 224 - rng.randint(6, 14)
    pitch = 84
    top = rng.randint(12, 28) if len(signs) == 2 else rng.randint(30, 70)
    for post in (left + 30, right - 38):
        pen.rectangle((post, top + 10, post + 8, 224), fill=(120, 120, 120), outline=INK)
    for index, sign in enumerate(signs):
        first = top + index * pitch
        height = 68 if len(sign.texts) == 1 else 96
        board = (left, first, right, first + height)
        pen.rounded_rectangle(board, 8, fill=COLORS[sign.color], outline="white", width=3)
        ink = INK if sign.color == "yellow" else (255, 255, 255)
        middle, width = (left + right) / 2, right - left - 20
        if len(sign.texts) == 1:
            fit_text(pen, (middle, first + height / 2), sign.texts[0], width=width, size=38, anchor="mm", color=ink)
        else:
            fit_text(pen, (middle, first + 32), sign.texts[0], width=width, size=36, anchor="mm", color=ink)
            fit_text(pen, (middle, first + 71), sign.texts[1], width=width, size=34, anchor="mm", color=ink)


def ocr_tokens(signs: tuple[Sign, ...]) -> str:
    """Every text on the signs in reading order."""
    return ", ".join(text for sign in signs for text in sign.texts)


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One question about a sign; metric "exact"."""
    signs = make_signs(rng, partition)
    photo = rng.choice(photos(partition))
    image = draw_photo(rng, photo)
    draw_signs(image, signs, rng)
    if len(signs) == 1:
        line = rng.randrange(2)
        question, answer = f"Which {('town', 'airport code')[line]} is on the sign?", signs[0].texts[line]
    else:
        index = rng.randrange(2)
        place = ("upper", "lower")[index] if rng.random() < 0.3 else signs[index].color
        question, answer = f"What does the {place} sign say?", signs[index].texts[0]
    prompt = lines(question, f"Reference OCR token: {ocr_tokens(signs)}", SHORT)
    source = ";".join([*(sign.source for sign in signs), photo.source])
    return ask(image, prompt, answer, metric="exact", source=source)
