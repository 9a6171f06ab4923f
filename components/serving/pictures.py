"""Pictures of requests: data URLs only, checked before anything is decoded. No address is ever fetched."""

from __future__ import annotations

import base64
import binascii
import io
import re

from PIL import Image

from components.data.formats.pictures import PICTURE_ERRORS
from components.serving.options import MIB, Limits
from components.serving.refusals import Refusal, bad_request

# Formats that are decoded by libraries for pictures alone: not EPS or PDF, say, for which Pillow starts programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_HEAD = re.compile(r"(?:data:[\w.+/-]{0,40}|[a-z][a-z0-9+.-]{0,9}:)", re.IGNORECASE)  # what is told
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


def picture_of(url: str, limits: Limits, param: str) -> bytes:
    """The encoded picture in a data URL; raises `Refusal`. What its header declares is within the limits."""
    found = _DATA_URL.match(url)
    if found is None:
        head = _HEAD.match(url)
        given = f"this one begins with {head[0]!r}" if head else "this is not one"
        raise bad_request(
            f"a picture's address must be a data URL such as data:image/png;base64,..., and {given}; no address is "
            "fetched, send the picture itself.",
            param=param,
            code="invalid_image_url",
        )
    encoded = url[found.end() :]
    largest = int(limits.picture_mib * MIB)
    if len(encoded) * 3 // 4 > largest + 2:
        raise Refusal(
            413,
            f"a picture has more than {limits.picture_mib:g} MiB; make it smaller.",
            code="image_too_large",
            param=param,
        )
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(
            "the data URL of a picture is not base64; encode the picture's file.", param=param, code="invalid_base64"
        ) from error
    _check_declared(data, limits, param)
    return data


def _check_declared(data: bytes, limits: Limits, param: str) -> None:
    """By its header alone: a file of a few kilobytes may declare, and would decode to, gigabytes."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise _too_many_pixels("over a hundred million", limits, param) from error
    except PICTURE_ERRORS as error:
        raise bad_request(
            f"a picture cannot be read; send one of {', '.join(FORMATS)}.",
            param=param,
            code="invalid_image",
        ) from error
    if width * height > limits.picture_megapixels * 1e6:
        raise _too_many_pixels(f"{width} x {height}", limits, param)


def _too_many_pixels(given: str, limits: Limits, param: str) -> Refusal:
    return bad_request(
        f"a picture has too many pixels ({given}); at most {limits.picture_megapixels:g} million are taken.",
        param=param,
        code="image_too_large",
    )
