"""Real photographs shipped by scikit-image and scikit-learn, cut into quarters that belong to one partition each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from PIL import Image

from components.core.errors import DataError
from components.data.embedded.drawing import SIZE
from components.data.embedded.facts import Partition, package_dir, partition_ranked

# file, what every quarter of it shows (our own word; None where a quarter may show something else)
_PICTURES: dict[tuple[str, str, str], tuple[tuple[str, str | None], ...]] = {
    ("skimage", "scikit-image", "data"): (
        ("astronaut.png", None),
        ("brick.png", "bricks"),
        ("camera.png", None),
        ("chelsea.png", None),
        ("coffee.png", None),
        ("coins.png", "coins"),
        ("grass.png", "grass"),
        ("gravel.png", "stones"),
        ("hubble_deep_field.jpg", "space"),
        ("rocket.jpg", None),
    ),
    ("sklearn", "scikit-learn", "datasets/images"): (("china.jpg", None), ("flower.jpg", None)),
}
_LEAST = 0.75  # of a quarter's shorter side: the smallest square that is cut from it


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One quarter of a photograph."""

    picture: Image.Image
    shows: str | None
    source: str


@cache
def photos(partition: Partition) -> tuple[Photo, ...]:
    """The quarters of one partition: of every photograph, one or two."""
    found: list[Photo] = []
    for (module, distribution, folder), pictures in _PICTURES.items():
        for file, shows in pictures:
            path = package_dir(module, distribution) / folder / file
            if not path.is_file():
                raise DataError(f"{distribution} has no {file}; install the version that constraints.txt names.")
            with Image.open(path) as image:
                whole = image.convert("RGB")
            names = {f"{distribution}/{file}/quarter{index}": index for index in range(4)}
            for source in partition_ranked(list(names), partition):
                found.append(Photo(picture=_quarter(whole, names[source]), shows=shows, source=source))
    return tuple(found)


def _quarter(whole: Image.Image, index: int) -> Image.Image:
    width, height = whole.width // 2, whole.height // 2
    left, top = width * (index % 2), height * (index // 2)
    return whole.crop((left, top, left + width, top + height))


def draw_photo(rng: Random, photo: Photo) -> Image.Image:
    """A random square of the quarter as a full picture, sometimes mirrored."""
    side = round(min(photo.picture.size) * rng.uniform(_LEAST, 1.0))
    left, top = rng.randint(0, photo.picture.width - side), rng.randint(0, photo.picture.height - side)
    cut = photo.picture.crop((left, top, left + side, top + side))
    if rng.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return cut.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
