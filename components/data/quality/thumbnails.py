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

    def thumbnail(self, data: bytes) -> Thumbnail:
        """A small copy of an encoded picture, or why it cannot be made."""
        if self.room <= 0:
            return Thumbnail(missing="left out to keep the page small")
        try:
            small = _small(data)
        except PICTURE_ERRORS as error:
            return Thumbnail(missing=f"cannot be decoded: {error}"[:120])
        if isinstance(small, str):
            return Thumbnail(missing=small)
        file = io.BytesIO()
        small.save(file, "JPEG", quality=_QUALITY, optimize=True)
        uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
        self.room -= len(uri)
        return Thumbnail(uri=uri, width=small.width, height=small.height)


def _small(data: bytes) -> Image.Image | str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > LARGEST:
                return f"too large to show, {image.width:,} x {image.height:,} pixels"
        small = small_image(data, SIDE)
    small.thumbnail((SIDE, SIDE))
    return small
