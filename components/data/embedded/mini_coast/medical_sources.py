"""Medical pictures inside installed packages, cut into source blocks that belong to one partition each.

MNI152 (nilearn): slices of one template brain in blocks of six, the last of each block left out as a gap between
partitions. DICOM files (pydicom, pydicom-data) and scikit-image's pictures: disjoint tiles of a picture or blocks of
frames. Every label is a header word, a coordinate, or measured from the tissue maps or stain channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.core.errors import DataError
from components.data.embedded.facts import Partition, package_dir, partition_ranked

Pixels = NDArray[np.uint8]  # [H, W] or [H, W, 3]

_BLOCK = 6  # slices per block, of which 5 are used
_SLICES = {"axial": (2, 36, 144), "coronal": (1, 42, 192), "sagittal": (0, 36, 162)}  # axis, first, last (mm voxels)
_MAPS = {"t1": "T1 scan", "gm": "gray matter map", "wm": "white matter map"}

# file, module, modality, body part from the header (None where it has none), tiles per side or frame blocks
_DICOM: tuple[tuple[str, str, str, str | None, int], ...] = (
    ("test_files/693_J2KI.dcm", "pydicom", "CT", None, 2),
    ("test_files/J2K_pixelrep_mismatch.dcm", "pydicom", "CT", "head", 2),
    ("data/explicit_VR-UN.dcm", "data_store", "CT", "pancreas", 2),
    ("data/MR-SIEMENS-DICOM-WithOverlays.dcm", "data_store", "MRI", "abdomen", 2),
    ("data/MR2_J2KI.dcm", "data_store", "MRI", "shoulder", 2),
    ("data/RG1_J2KI.dcm", "data_store", "X-ray", "chest", 3),
    ("data/RG3_J2KI.dcm", "data_store", "X-ray", "leg", 3),
    ("data/US1_J2KI.dcm", "data_store", "ultrasound", None, 2),
    ("test_files/examples_rgb_color.dcm", "pydicom", "ultrasound", None, 2),
    ("test_files/examples_palette.dcm", "pydicom", "ultrasound", None, 2),
    ("data/gdcm-US-ALOKA-16.dcm", "data_store", "ultrasound", "abdomen", 2),
)
# file, modality, body part, tiles per side
_PICTURES: tuple[tuple[str, str, str | None, int], ...] = (
    ("retina.jpg", "fundus photo", "eye", 4),
    ("ihc.png", "microscopy", None, 4),
)
# Stain vectors of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001), rows normalised before use.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One picture and what is known about it; None where a question does not apply."""

    pixels: Pixels
    source: str
    modality: str
    part: str | None
    plane: str | None = None
    half: str | None = None  # "upper"/"lower", "front"/"back" or "left"/"right" by coordinate
    map: str | None = None
    gray_rich: bool | None = None  # more than 60 % of the slice's tissue is grey matter, by the tissue maps
    brown: bool | None = None  # the patch holds more DAB stain than the median patch


def _mni(kind: str) -> Pixels:
    from nibabel.nifti1 import Nifti1Image  # comes with nilearn; imported only when medical pictures are drawn

    folder = package_dir("nilearn", "nilearn") / "datasets" / "data"
    path = folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.is_file():
        raise DataError(f"nilearn has no {path.name}; install nilearn 0.14.1.")
    return np.asarray(Nifti1Image.from_filename(path).dataobj, dtype=np.uint8)


def _half(plane: str, index: int) -> str | None:
    """Which half of the brain a slice is from; None within 10 mm of the middle (sagittal: never asked)."""
    middle, low, high = {"axial": (88, "lower", "upper"), "coronal": (117, "back", "front")}.get(plane, (0, "", ""))
    return None if not low or abs(index - middle) < 10 else (low if index < middle else high)


def _gray_rich(share: float) -> bool | None:
    """Above 60 % grey matter (about half of the slices); None within 3 points of it, where it cannot be seen."""
    return None if abs(share - 0.6) < 0.03 else share > 0.6


def _ink_box(cut: Pixels) -> tuple[slice, slice]:
    """Rows and columns that hold tissue, with a margin of 6 pixels."""
    rows, columns = np.flatnonzero(cut.max(axis=1) > 20), np.flatnonzero(cut.max(axis=0) > 20)
    return slice(max(0, int(rows[0]) - 6), int(rows[-1]) + 7), slice(max(0, int(columns[0]) - 6), int(columns[-1]) + 7)


def _brain(partition: Partition) -> Iterator[Scan]:
    volumes = {kind: _mni(kind) for kind in _MAPS}
    for plane, (axis, first, last) in _SLICES.items():
        starts = {f"nilearn/mni152/{plane}/{start}": start for start in range(first, last, _BLOCK)}
        for source in partition_ranked(list(starts), partition):
            for index in range(starts[source], starts[source] + _BLOCK - 1):
                # Plain indexing: np.take would copy the whole volume for every slice.
                cuts = {kind: np.moveaxis(volume, axis, 0)[index] for kind, volume in volumes.items()}
                box = _ink_box(cuts["t1"])
                gray, white = (int(cuts[kind].sum(dtype=np.int64)) for kind in ("gm", "wm"))
                for kind, name in _MAPS.items():
                    yield Scan(
                        pixels=np.flipud(cuts[kind][box].T),
                        source=f"{source}+{index - starts[source]}",
                        modality="MRI",
                        part="brain",
                        plane=plane,
                        half=_half(plane, index),
                        map=name,
                        gray_rich=_gray_rich(gray / (gray + white)),
                    )


def _decode(path: Path) -> Pixels:
    """First frame of a DICOM file as uint8, windowed to its 1st to 99th percentile."""
    import pydicom  # optional package, imported only when medical pictures are drawn
    from pydicom.pixels.processing import apply_color_lut

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these are test files: their headers bend the standard on purpose
        data = pydicom.dcmread(path)
        pixels = data.pixel_array
        if data.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, data)
    window = _windowed(pixels)
    return 255 - window if data.PhotometricInterpretation == "MONOCHROME1" else window


def _windowed(pixels: NDArray[np.generic]) -> Pixels:
    """Any pixel type as uint8, its 1st to 99th percentile stretched over the range."""
    values = pixels.astype(np.float32)  # float first: integer arithmetic overflows silently
    low, high = np.percentile(values, (1, 99))
    return (np.clip((values - low) / max(float(high - low), 1.0), 0, 1) * 255).astype(np.uint8)


def _tiles(pixels: Pixels, sides: int) -> list[Pixels]:
    """`sides` x `sides` disjoint tiles in reading order."""
    height, width = pixels.shape[0] // sides, pixels.shape[1] // sides
    return [
        pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(sides)
        for column in range(sides)
    ]


def _brown_amount(tile: Pixels) -> float:
    """Mean DAB concentration: optical density unmixed with the stain vectors."""
    vectors = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
    density = -np.log10(np.maximum(tile.astype(np.float64), 1) / 255)
    return float((density.reshape(-1, 3) @ np.linalg.inv(vectors))[:, 2].mean())


def _tiled() -> Iterator[tuple[str, str, str | None, list[Pixels]]]:
    for file, module, modality, part, sides in _DICOM:
        distribution = "pydicom-data" if module == "data_store" else module
        folder = package_dir(module, distribution)
        path = folder / "data" / file if module == "pydicom" else folder / file
        yield f"{distribution}/{path.name}", modality, part, _tiles(_decode(path), sides)
    folder = package_dir("skimage", "scikit-image") / "data"
    for file, modality, part, sides in _PICTURES:
        with Image.open(folder / file) as image:
            yield f"scikit-image/{file}", modality, part, _tiles(_windowed(np.asarray(image)), sides)


@cache
def _tile_scans() -> dict[str, tuple[Scan, ...]]:
    """Every tile that shows something, grouped by source picture."""
    groups: dict[str, tuple[Scan, ...]] = {}
    for name, modality, part, tiles in _tiled():
        amounts = [_brown_amount(tile) for tile in tiles] if "ihc" in name else []
        median = float(np.median(amounts)) if amounts else 0.0
        groups[name] = tuple(
            Scan(
                pixels=tile,
                source=f"{name}/tile{index}",
                modality=modality,
                part=part,
                brown=amounts[index] > median if amounts else None,
            )
            for index, tile in enumerate(tiles)
            if float(tile.std()) > 12  # an empty corner of a scan shows nothing
        )
    return groups


@cache
def scans(partition: Partition) -> tuple[Scan, ...]:
    """Every medical picture of one partition."""
    found = list(_brain(partition))
    for group in _tile_scans().values():
        kept = set(partition_ranked([scan.source for scan in group], partition))
        found += [scan for scan in group if scan.source in kept]
    return tuple(found)
