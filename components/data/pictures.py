"""Pictures that data files name: found inside one folder and nowhere else, and decoded once to prove them whole."""

from __future__ import annotations

import functools
import io
import os
import re
import struct
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from components.data.reports import ItemError
from components.data.storage import Location, reason

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
    """The picture that `data` encodes, decoded whole; raises `ItemError` naming it by `name`."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError as error:
        raise ItemError("broken image", f"the image {name} is no picture Pillow can read") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ItemError("broken image", f"the image {name} is truncated or broken ({error})") from error
    return image


def encoded_sheet(picture: bytes, choices: list[bytes]) -> tuple[bytes, tuple[int, int]]:
    """`picture` with the `choices` in a row below it on white, as PNG, and its size; all were decoded before."""
    top = decoded(picture, "above").convert("RGB")
    row = [decoded(choice, "below").convert("RGB") for choice in choices]
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
