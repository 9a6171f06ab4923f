"""Small copies of pictures inside a page: decoded, made small, encoded again as JPEG and written as data URIs.

The bytes of a release never reach a page: what a browser is given was made here. Copies are made until the room of
their page is full.
"""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass

from PIL import Image

from components.data.formats.pictures import PICTURE_ERRORS, small_image

SHOWN = 4  # pictures of one row
SIDE = 224  # pixels of the longer side at most
LARGEST = 60_000_000  # pixels; decoding more takes seconds and half a gigabyte
_QUALITY = 70


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A small copy and its size in pixels, or why it is missing (`uri` is then empty)."""

    uri: str = ""
    width: int = 0
    height: int = 0
    missing: str = ""


@dataclass(kw_only=True)
class Album:
    """Makes thumbnails while there is room."""

    room: int
    """Characters that the data URIs may still take."""

    def thumbnail(self, *encoded: bytes) -> Thumbnail:
        """A small copy of a row's encoded pictures, side by side, or why it cannot be made.

        Of more than `SHOWN` pictures these are the first ones.
        """
        if self.room <= 0:
            return Thumbnail(missing="left out to keep the page small")
        try:
            copies = [_small(data) for data in encoded[:SHOWN]]
        except PICTURE_ERRORS as error:
            return Thumbnail(missing=f"cannot be decoded: {error}"[:120])
        large = next((copy for copy in copies if isinstance(copy, str)), None)
        if large is not None:
            return Thumbnail(missing=large)
        small = _side_by_side([copy for copy in copies if isinstance(copy, Image.Image)])
        file = io.BytesIO()
        small.save(file, "JPEG", quality=_QUALITY, optimize=True)
        uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
        self.room -= len(uri)
        return Thumbnail(uri=uri, width=small.width, height=small.height)


def _side_by_side(copies: list[Image.Image]) -> Image.Image:
    """One picture of several, `SIDE` wide at most."""
    if len(copies) == 1:
        return copies[0]
    sheet = Image.new("RGB", (sum(each.width for each in copies), max(each.height for each in copies)), "white")
    left = 0
    for each in copies:
        sheet.paste(each, (left, 0))
        left += each.width
    sheet.thumbnail((SIDE, SIDE))
    return sheet


def _small(data: bytes) -> Image.Image | str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > LARGEST:
                return f"too large to show, {image.width:,} x {image.height:,} pixels"
        small = small_image(data, SIDE)
    small.thumbnail((SIDE, SIDE))
    return small
