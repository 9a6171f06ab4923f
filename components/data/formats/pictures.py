"""Pictures that data files name: found inside one folder and nowhere else, and decoded once to prove them whole.

A model learns the first frame of a picture, turned upright by its EXIF orientation, in RGB of 8 bits: transparent
parts on white, deeper grey by the range that its file declares (`grey`). The same function opens a picture here and in
training, so a row's width and height are those that are learned, and nothing fails later.
"""

from __future__ import annotations

import functools
import io
import os
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from components.core.errors import ConfigError, DataError
from components.core.file_systems import reason
from components.core.location import Location
from components.data.formats.grey import eight_bits, is_deep
from components.data.problems import ItemError

# Pillow's plugins raise whatever their parsing meets; those of AVIF and DDS RuntimeError and NotImplementedError.
PICTURE_ERRORS = (
    OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, RuntimeError,
    MemoryError, AssertionError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
MOST_PIXELS = 1 << 27  # declared; about 400 MB once decoded in RGB
LARGEST_PICTURE = 1 << 28  # bytes of a file

Orientation = Literal["apply", "leave"]
"""Whether pictures are turned upright by their EXIF orientation, or learned as stored."""
ORIENTATIONS: tuple[Orientation, ...] = get_args(Orientation)
_ADDRESS = re.compile(r"(?:https?|ftp|s3|gs)://", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
_BACK = {6: 8, 8: 6}  # all other turns undo themselves
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
_SMALLEST = (1, 1)  # to prove a picture its values are not needed
_GAP = 16  # pixels between the pictures of a sheet


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A whole picture: its encoded bytes, and width and height as learned."""

    data: bytes
    size: tuple[int, int]
    done: tuple[str, ...] = ()
    """What is done to it before it is learned: keys of `quality.checks.DONE`."""


class _Learned(NamedTuple):
    """A picture in RGB, the size that it has when it is learned, and the keys of what was done to it."""

    image: Image.Image
    size: tuple[int, int]
    done: tuple[str, ...]


def picture_path(root: Path, name: str) -> Path:
    """The file `name` inside `root`, symlinks followed; raises `ItemError` when it leaves the root or is missing."""
    if _ADDRESS.match(name):
        raise ItemError("missing image", f"the image {name!r:.80} is an address; download it and name the file")
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

    Cached, since pictures share folders and following one takes as long as reading a small picture; every preparation
    begins with an empty cache, so that changed links count.
    """
    return os.path.realpath(folder)


def picture_of(root: Location, name: str, orientation: Orientation = "apply") -> Picture:
    """The picture `name` inside the folder `root`; raises `ItemError`."""
    if (folder := root.local) is not None:
        return proved(_read(picture_path(folder, name), name), name, orientation)
    if name.startswith("/") or "\\" in name or _SCHEME.match(name) or ".." in name.split("/"):
        raise ItemError("image outside folder", f"the image path {name} leads outside the image folder {root.shown}")
    try:
        inside = "/".join(part for part in name.split("/") if part not in ("", "."))
        with (root / inside).unpacked() as file:
            data = file.read()
    except ConfigError as error:
        raise ItemError("missing image", f"the image path {name!r} names no file in {root.shown}") from error
    except FileNotFoundError as error:
        raise ItemError("missing image", f"the image {name} is missing in {root.shown}") from error
    except (OSError, ValueError) as error:
        raise ItemError("broken image", f"the image {name} cannot be read ({reason(error)})") from error
    return proved(data, name, orientation)


def read_picture(path: Path, name: str, orientation: Orientation = "apply") -> Picture:
    """The picture in a file; raises `ItemError` naming it by `name`."""
    return proved(_read(path, name), name, orientation)


def _read(path: Path, name: str) -> bytes:
    try:
        if path.stat().st_size > LARGEST_PICTURE:
            raise ItemError("broken image", f"the image {name} has more than {LARGEST_PICTURE:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ItemError("broken image", f"the image {name} cannot be read ({error.strerror})") from error


def proved(data: bytes, name: str, orientation: Orientation = "apply") -> Picture:
    """The picture that `data` encodes, all of its bytes decoded; raises `ItemError` naming it by `name`.

    With the orientation "leave", a picture that EXIF would turn is encoded again as it is stored, as PNG, so that it
    is learned the same everywhere, its width and height included.
    """
    image, size, done = _named(data, name, orientation, _SMALLEST if orientation == "apply" else None)
    return Picture(data=_png(image) if "left" in done else data, size=size, done=done)


def decoded(data: bytes, name: str) -> Image.Image:
    """The picture that `data` encodes, as it is learned; raises `ItemError` naming it by `name`."""
    return _named(data, name, "apply").image


def _named(data: bytes, name: str, orientation: Orientation, wanted: tuple[int, int] | None = None) -> _Learned:
    try:
        return _learned(data, orientation, wanted)
    except UnidentifiedImageError as error:
        raise ItemError("broken image", f"the image {name} is not a picture that Pillow can read") from error
    except PICTURE_ERRORS as error:
        raise ItemError("broken image", f"the image {name} is truncated or broken ({error})") from error


def open_image(data: bytes, *, sample_id: str) -> Image.Image:
    """A row's picture as it is learned, in RGB; raises `DataError` naming `sample_id` when it is broken."""
    try:
        return _learned(data, "apply").image
    except PICTURE_ERRORS as error:
        raise DataError(f"the picture of row {sample_id} cannot be decoded ({error}); replace or remove it.") from error


def small_image(data: bytes, side: int) -> Image.Image:
    """A picture as it is learned, decoded at once to not much more than `side` pixels where its format can do that.

    Raises one of `PICTURE_ERRORS`.
    """
    return _learned(data, "apply", (side, side)).image


def _learned(data: bytes, orientation: Orientation, wanted: tuple[int, int] | None = None) -> _Learned:
    """The picture in RGB, with not much more than `wanted` pixels where its format can do that."""
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}; make it smaller")
    done = ["first frame"] if getattr(image, "is_animated", False) else []
    whole = image.size
    if wanted is not None:
        image.draft("RGB", wanted)
    shrunk = image.size != whole  # JPEG alone can; every byte is read all the same
    already = _orientation(image) if image.format == "TIFF" else 1  # Pillow turns TIFF as it loads it, and only TIFF
    image.load()
    stored = already if already != 1 else _orientation(image)
    if stored != 1:
        done.append("turned" if orientation == "apply" else "left")
    if is_deep(image):
        clear = image.info.get("transparency")
        seen_through = None if clear is None else Image.fromarray(np.asarray(image) == clear)
        image, assumed = eight_bits(image, data)
        done += ["grey assumed"] if assumed else []
        if seen_through is not None:
            image.paste(255, mask=seen_through)
    if orientation == "leave" and already != 1:
        image = image.transpose(_UPRIGHT[_BACK.get(already, already)])
    elif orientation == "apply" and stored != already:
        image = image.transpose(_UPRIGHT[stored])
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    if not shrunk:
        whole = image.size
    elif orientation == "apply" and stored in _SIDEWAYS:
        whole = whole[1], whole[0]
    return _Learned(image if image.mode == "RGB" else image.convert("RGB"), whole, tuple(done))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded picture, 1 to 8; 1 where it is missing or unreadable."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except PICTURE_ERRORS:
        return 1
    return found if found in range(2, 9) else 1


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
    return _png(sheet), sheet.size
