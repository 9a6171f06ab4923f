"""What is learned of a picture, pixel for pixel against Pillow, transformers and arithmetic written out here."""

from __future__ import annotations

import io
import struct
import zlib
from base64 import b64encode

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin
from transformers.image_utils import load_image

from components.core.errors import DataError
from components.data.formats.pictures import decoded, open_image, proved
from components.data.problems import ItemError


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def learned(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data, sample_id="x"))


def corners() -> Image.Image:
    """No turn or mirror image of it equals it."""
    image = Image.new("RGB", (32, 16), "white")
    image.paste((250, 0, 0), (0, 0, 12, 8))
    image.paste((0, 0, 250), (24, 0, 32, 8))
    return image


def oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(corners(), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8, 0, 9])
def test_a_picture_stands_as_its_exif_orientation_says(kind: str, orientation: int) -> None:
    data = oriented(kind, orientation)
    wanted = np.asarray(load_image(b64encode(data).decode()))
    assert np.array_equal(learned(data), wanted)
    assert np.array_equal(wanted, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")))
    size = decoded(data, "x").size
    assert size == (wanted.shape[1], wanted.shape[0])
    assert size == ((16, 32) if orientation in range(5, 9) else (32, 16))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_can_be_left_as_it_is_stored(kind: str, orientation: int) -> None:
    data = oriented(kind, orientation)
    shown = proved(data, "x", "apply")
    left = proved(data, "x", "leave")
    assert shown.done == (("turned",) if orientation != 1 else ())
    assert left.done == (("left",) if orientation != 1 else ())
    assert shown.data == data
    assert left.size == (32, 16)
    stored = np.asarray(Image.open(io.BytesIO(encoded(corners(), kind))).convert("RGB"))
    assert np.array_equal(learned(left.data), stored)


def png(values: np.ndarray, *, bits: int | None) -> bytes:
    """A 16-bit grey PNG, with an sBIT chunk where `bits` are given."""
    data = encoded(Image.fromarray(values.astype(np.uint16)), "PNG")
    if bits is None:
        return data
    body = b"sBIT" + bytes([bits])
    after_header = 8 + 25
    return data[:after_header] + struct.pack(">I", 1) + body + struct.pack(">I", zlib.crc32(body)) + data[after_header:]


def tiff(values: np.ndarray, **tags: float) -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[{"minimum": 280, "maximum": 281, "smallest": 340, "largest": 341, "photometric": 262}[name]] = value
    return encoded(Image.fromarray(values), "TIFF", tiffinfo=info)


def packed_12_bits(values: np.ndarray) -> bytes:
    """A TIFF file with BitsPerSample 12: two pixels in three bytes, written by hand, as Pillow writes none."""
    height, width = values.shape
    first, second = values.reshape(-1, 2).T.astype(int)
    strip = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()
    entries = [(256, 3, width), (257, 3, height), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
               (278, 3, height), (279, 4, len(strip))]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(strip))
    return header + strip + struct.pack("<H", len(entries)) + directory + struct.pack("<I", 0)


RAMP = np.linspace(0, 1, 48).reshape(6, 8)
TO_8_BITS = np.rint(RAMP * 255)


def ramp(high: float, kind: type, low: float = 0.0) -> np.ndarray:
    values = low + RAMP * (high - low)
    return values.astype(kind) if kind is np.float32 else np.rint(values).astype(kind)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (png(ramp(65535, np.uint16), bits=None), "16 bits"),
        (png(ramp(65535, np.uint16), bits=16), "16 bits, said"),
        (png(ramp(4095, np.uint16), bits=12), "12 bits left as they were, said"),
        (png(ramp(4095, np.uint16) << 4, bits=12), "12 bits moved up, as PNG asks"),
        (png(ramp(4095, np.uint16), bits=None), "12 bits, not said"),
        (png(ramp(1023, np.uint16), bits=None), "10 bits, not said"),
        (packed_12_bits(ramp(4095, np.uint16)), "12 bits of TIFF"),
        (tiff(ramp(65535, np.uint16)), "16 bits of TIFF"),
        (tiff(ramp(4095, np.uint16)), "12 bits in TIFF, not said"),
        (tiff(ramp(3000, np.uint16), minimum=0, maximum=3000), "a range of TIFF"),
        (tiff(ramp(65535, np.int32)), "16 bits in 32"),
        (tiff(ramp(2**31 - 1, np.int32), largest=2**31 - 1), "31 bits in 32, said"),
        (tiff(ramp(2000, np.int32, low=-1000)), "below zero"),
        (tiff(ramp(1, np.float32)), "floating point to 1"),
        (tiff(ramp(255, np.float32)), "floating point to 255"),
        (tiff(ramp(40, np.float32, low=-2), smallest=-2.0, largest=40.0), "floating point, said"),
        (tiff(ramp(1e12, np.float32)), "floating point beyond all bits"),
        (encoded(Image.fromarray(ramp(65535, np.uint16)), "JPEG2000", irreversible=False), "JPEG 2000"),
        (b"P5 8 6 4095\n" + ramp(4095, np.uint16).astype(">u2").tobytes(), "PGM of 12 bits"),
    ],
)
def test_grey_of_more_bits_fills_8_bits_by_its_declared_range(data: bytes, name: str) -> None:
    seen = learned(data)
    assert seen.shape == (6, 8, 3)
    assert np.abs(seen - TO_8_BITS[..., None]).max() <= 1, name


def test_a_turned_scan_keeps_its_declared_range() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(Image.fromarray(ramp(400, np.uint16)), "PNG", exif=exif)
    body = b"sBIT" + bytes([12])
    turned = plain[:33] + struct.pack(">I", 1) + body + struct.pack(">I", zlib.crc32(body)) + plain[33:]
    stored = learned(png(ramp(400, np.uint16), bits=12))
    assert np.array_equal(learned(turned), np.rot90(stored, -1))
    tagged = encoded(Image.fromarray(ramp(400, np.uint16)), "TIFF", tiffinfo={274: 6, 281: 4095})
    assert np.array_equal(learned(tagged), np.rot90(learned(tiff(ramp(400, np.uint16), maximum=4095)), -1))
    left = proved(tagged, "x", "leave")
    assert (left.size, left.done) == ((8, 6), ("left",))
    assert np.array_equal(learned(left.data), learned(tiff(ramp(400, np.uint16), maximum=4095)))


def test_a_dark_picture_of_a_declared_range_stays_dark() -> None:
    dark = ramp(400, np.uint16)
    for data in (png(ramp(250, np.uint16) << 4, bits=12), tiff(dark, maximum=4095), packed_12_bits(dark)):
        assert 14 < learned(data).max() < 30


def test_a_range_that_values_leave_is_not_believed() -> None:
    assert np.abs(learned(tiff(ramp(65535, np.uint16), minimum=0, maximum=9)) - TO_8_BITS[..., None]).max() <= 1


def test_white_is_zero_in_16_bits_as_in_8() -> None:
    deep = encoded(Image.fromarray(ramp(65535, np.uint16)), "TIFF", tiffinfo={262: 0})
    assert np.abs(255 - learned(deep) - TO_8_BITS[..., None]).max() <= 1


def test_the_see_through_grey_of_16_bits_is_white() -> None:
    data = encoded(Image.fromarray(np.array([[0, 65535 // 2]], np.uint16)), "PNG", transparency=0)
    assert learned(data)[0, :, 0].tolist() == [255, 127]


def test_values_that_are_no_numbers_are_named() -> None:
    data = tiff(np.array([[0.0, np.nan]], np.float32))
    with pytest.raises(ItemError, match=r"a\.tif is truncated or broken \(.*not numbers"):
        decoded(data, "a.tif")
    with pytest.raises(DataError, match="row x cannot be decoded"):
        open_image(data, sample_id="x")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_other_pictures_are_as_pillow_converts_them(mode: str) -> None:
    image = corners().convert(mode)
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    data = encoded(image, kind)
    assert np.array_equal(learned(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
