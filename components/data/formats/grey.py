"""Grey pictures of more than 8 bits a pixel, made 8 bits by the range that their file declares.

| file | its range |
|---|---|
| TIFF | SMinSampleValue to SMaxSampleValue, or MinSampleValue to MaxSampleValue, where no value is outside |
| TIFF of 12 bits | BitsPerSample |
| PNG with sBIT below 16 | the 16 bits when values were scaled to them as PNG asks, else the bits that sBIT names |
| JPEG 2000, PGM | what their header says; Pillow has scaled the values to 16 bits |

Where nothing is declared: with values below zero, the picture's own smallest and largest; floating point up to 1, 0 to
1; else 0 to the largest number of the fewest bits, of 8, 10, 12, 14, 16, 24 and 32, that hold all values, since
scanners and detectors write 12 bits into files of 16. Such a range is assumed, and reported as assumed.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

_DEPTHS = (8, 10, 12, 14, 16, 24, 32)
_FULL = (0.0, 65535.0)
_TIFF_RANGES = ((340, 341), (280, 281))  # tags: SMinSampleValue, SMaxSampleValue; MinSampleValue, MaxSampleValue
_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT, _UNSIGNED = 262, 258, 339, 1  # tags, and a value of the last one


def is_deep(image: Image.Image) -> bool:
    """Whether a picture is grey of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def eight_bits(image: Image.Image, data: bytes) -> tuple[Image.Image, bool]:
    """The loaded picture in 8 bits, and whether its range was assumed; `data` are its encoded bytes.

    Raises `ValueError` for values that are not numbers.
    """
    values = _values(image)
    if not np.isfinite(values).all():
        raise ValueError("its pixels have values that are not numbers")
    declared = _declared(image, data, values)
    low, high = declared or _assumed(values, image.mode)
    scaled = np.rint((values - low) * (255 / max(high - low, np.finfo(float).tiny))).clip(0, 255).astype(np.uint8)
    if _tag(image, _PHOTOMETRIC) == 0:  # white is zero; Pillow turns only 8 bits over
        scaled = 255 - scaled
    sure = declared is not None or (high == _FULL[1] and image.mode.startswith("I;16"))
    return Image.fromarray(scaled), not sure


def _values(image: Image.Image) -> NDArray[np.float64]:
    values = np.asarray(image)
    if image.mode == "I" and _tag(image, _BITS) == 32 and _tag(image, _SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED:
        values = values.astype(np.int32).view(np.uint32)  # Pillow has no mode for it
    return values.astype(np.float64)


def _tag(image: Image.Image, number: int, default: Any = None) -> Any:
    """The first value of a TIFF file's tag; `default` where there is no such tag, or no TIFF."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return default
    value = image.tag_v2.get(number, default)
    return (value[0] if value else default) if isinstance(value, tuple) else value


def _declared(image: Image.Image, data: bytes, values: NDArray[np.float64]) -> tuple[float, float] | None:
    if image.format == "JPEG2000" or (image.format == "PPM" and image.mode == "I"):
        return _FULL
    if image.format == "PNG":
        return _png_range(data, values)
    for lowest, highest in _TIFF_RANGES:
        low, high = _tag(image, lowest, 0), _tag(image, highest)
        if high is not None and low < high and low <= values.min() and values.max() <= high:
            return float(low), float(high)
    bits = _tag(image, _BITS)
    return None if bits is None or bits in (16, 32) else (0.0, 2.0**bits - 1)


def _png_range(data: bytes, values: NDArray[np.float64]) -> tuple[float, float] | None:
    bits = _significant_bits(data)
    if bits is None:
        return None
    small = values.max() < 2**bits and bool((values % 2 ** (16 - bits)).any())
    return (0.0, 2.0**bits - 1) if small else _FULL


def _significant_bits(data: bytes) -> int | None:
    """What the sBIT chunk of a grey PNG says."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"sBIT" and length:
            bits = data[at + 8]
            return bits if 0 < bits <= 16 else None
        if kind == b"IDAT":
            return None
        at += 12 + length
    return None


def _assumed(values: NDArray[np.float64], mode: str) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if mode == "F" and low >= 0 and high <= 1:
        return 0.0, 1.0
    depth = next((depth for depth in _DEPTHS if high <= 2**depth - 1), None)
    return (low, high) if low < 0 or depth is None else (0.0, 2.0**depth - 1)
