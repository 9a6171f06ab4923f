"""Pictures that data files name: found inside one folder and nowhere else, and decoded once to prove them whole.

What is learned of a picture is its first frame, turned upright as its EXIF orientation says, in RGB of 8 bits: see-
through parts on white, grey of more bits by the range its file declares (`grey`). The same function opens a picture
here and when it is learned, so a row's width and height are those of what is learned, and nothing fails later.
"""

from __future__ import annotations

import functools
import io
import os
import re
import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from components.data.grey import eight_bits, is_deep
from components.data.reports import ItemError
from components.data.storage import Location, reason
from components.errors import DataError

PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_GAP = 16  # pixels between the pictures of a sheet


def picture_path(root: Path, name: str) -> Path:
    """The file `name` inside `root`, symlinks followed; raises `ItemError` when it leaves the root or is missing."""
    try:
        if "\0" in name:
            raise ValueError("a null byte in it")
        base = followed(str(root))
        folder, last = os.path.split(os.path.join(base, name))  # noqa: PTH118  (once a picture: pathlib is slow)
        path = os.path.join(followed(folder), last)  # noqa: PTH118
        if last in ("", ".", "..") or os.path.islink(path):  # noqa: PTH114
            path = os.path.realpath(path)
        inside, found = path == base or path.startswith(f"{base.rstrip(os.sep)}{os.sep}"), Path(path).is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a null byte
        raise ItemError("missing image", f"the image path {name!r} cannot be followed ({error})") from error
    if not inside:
        raise ItemError("image outside folder", f"the image path {name} leads outside the image folder {root}")
    if not found:
        raise ItemError("missing image", f"the image {name} is missing in {root}")
    return Path(path)


@functools.lru_cache(maxsize=1024)
def followed(folder: str) -> str:
    """The folder with its symlinks followed.

    Kept, since pictures share folders and following one takes as long as reading a small picture; an import that begins
    empties the cache, so that what was changed in between counts.
    """
    return os.path.realpath(folder)


def picture_of(root: Location, name: str) -> tuple[bytes, tuple[int, int]]:
    """The picture `name` inside the folder `root`: its encoded bytes, width and height; raises `ItemError`."""
    if root.local is not None:
        return read_picture(picture_path(root.local, name), name)
    if name.startswith("/") or "\\" in name or _SCHEME.match(name) or ".." in name.split("/"):
        raise ItemError("image outside folder", f"the image path {name} leads outside the image folder {root.shown}")
    try:
        with root.below(name).open() as file:
            data = file.read()
    except FileNotFoundError as error:
        raise ItemError("missing image", f"the image {name} is missing in {root.shown}") from error
    except (OSError, ValueError) as error:
        raise ItemError("broken image", f"the image {name} cannot be read ({reason(error)})") from error
    with decoded(data, name) as image:
        return data, image.size


def read_picture(path: Path, name: str) -> tuple[bytes, tuple[int, int]]:
    """A picture's encoded bytes, and its width and height in pixels; raises `ItemError` naming it by `name`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ItemError("broken image", f"the image {name} cannot be read ({error.strerror})") from error
    with decoded(data, name) as image:
        return data, image.size


def decoded(data: bytes, name: str) -> Image.Image:
    """What is learned of the picture that `data` encodes; raises `ItemError` naming it by `name`."""
    try:
        return _learned(data)
    except UnidentifiedImageError as error:
        raise ItemError("broken image", f"the image {name} is no picture Pillow can read") from error
    except PICTURE_ERRORS as error:
        raise ItemError("broken image", f"the image {name} is truncated or broken ({error})") from error


def open_image(data: bytes, *, sample_id: str) -> Image.Image:
    """What is learned of a row's picture, in RGB; raises `DataError` naming `sample_id` when it is broken."""
    try:
        return _learned(data)
    except PICTURE_ERRORS as error:
        raise DataError(f"the picture of row {sample_id} cannot be decoded ({error}); replace or remove it.") from error


def small_image(data: bytes, side: int) -> Image.Image:
    """What is learned of a picture, decoded at once to not much more than `side` pixels where its format can do that.

    Raises one of `PICTURE_ERRORS`.
    """
    return _learned(data, (side, side))


def _learned(data: bytes, wanted: tuple[int, int] | None = None) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if wanted is not None:
        image.draft("RGB", wanted)
    image.load()
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    return _rgb(image, data)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded picture, 1 to 8; 1 where there is none that can be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except PICTURE_ERRORS:
        return 1
    return found if found in range(2, 9) else 1


def _rgb(image: Image.Image, data: bytes) -> Image.Image:
    if is_deep(image):
        clear = image.info.get("transparency")
        seen_through = None if clear is None else Image.fromarray(np.asarray(image) == clear)
        image, _ = eight_bits(image, data)
        if seen_through is not None:
            image.paste(255, mask=seen_through)
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image.convert("RGB")


def encoded_sheet(picture: bytes, choices: list[bytes]) -> tuple[bytes, tuple[int, int]]:
    """`picture` with the `choices` in a row below it on white, as PNG, and its size; all were decoded before."""
    top = decoded(picture, "above")
    row = [decoded(choice, "below") for choice in choices]
    width = max(top.width, sum(choice.width for choice in row) + _GAP * (len(row) - 1))
    sheet = Image.new("RGB", (width, top.height + _GAP + max(choice.height for choice in row)), "white")
    sheet.paste(top, (0, 0))
    left = 0
    for choice in row:
        sheet.paste(choice, (left, top.height + _GAP))
        left += choice.width + _GAP
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue(), sheet.size
