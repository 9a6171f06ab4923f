"""Drawing with Pillow: the canvas, the named colours, text that fits, PNG bytes. 224 x 224 pixels, RGB."""

from __future__ import annotations

import io
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from components.core.errors import ConfigError

SIZE = 224
INK = (25, 25, 25)
GRID = (215, 215, 215)

# Few saturated colours that a frozen early CNN block separates; each is an answer word.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 150, 50),
    "blue": (30, 80, 220),
    "yellow": (245, 210, 20),
    "purple": (140, 40, 170),
    "black": (20, 20, 20),
}


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own embedded typeface (Aileron) at `size` pixels."""
    loaded = ImageFont.load_default(size)
    if not isinstance(loaded, ImageFont.FreeTypeFont):
        raise ConfigError("this Pillow was built without FreeType; install the package from PyPI, which has it.")
    return loaded


def canvas(color: tuple[int, int, int] = (255, 255, 255)) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture and its pen."""
    image = Image.new("RGB", (SIZE, SIZE), color)
    return image, ImageDraw.Draw(image)


def fit_text(
    pen: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    *,
    width: float,
    size: int,
    anchor: str = "la",
    color: tuple[int, int, int] = INK,
    smallest: int = 9,
) -> None:
    """Write `text` on one line no wider than `width` pixels: a smaller letter first, then a shortened text."""
    while size > smallest and pen.textlength(text, font=font(size)) > width:
        size -= 1
    while len(text) > 2 and pen.textlength(text, font=font(size)) > width:
        text = text[:-2].rstrip() + "."
    pen.text(place, text, font=font(size), fill=color, anchor=anchor)


def png_bytes(image: Image.Image) -> bytes:
    """PNG without metadata: the same picture gives the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=2)
    return buffer.getvalue()
