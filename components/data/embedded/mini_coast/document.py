"""DocVQA in miniature: cards typeset from real records, with the OCR tokens in the prompt as CoIN gives for TextVQA.

The pictures are typeset by us, so the OCR tokens are known rather than recognised; the data card says so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from random import Random

from PIL import Image

from components.data.embedded.drawing import COLORS, INK, canvas, fit_text
from components.data.embedded.facts import Partition, Sample, ask, package_dir, partition_of, sampledata
from components.data.embedded.mini_coast.prompts import SHORT, lines

_LONGEST = 18  # letters a value may have: longer ones would not fit the card at a readable size
_MAX_FILMS = 6000


@dataclass(frozen=True, kw_only=True)
class Record:
    """One form: its title and its named fields."""

    title: str
    fields: tuple[tuple[str, str], ...]
    source: str


def _record(title: str, source: str, fields: dict[str, str]) -> Record | None:
    """None when fewer than three fields are plain and short enough to print."""
    kept = {name: value.strip() for name, value in fields.items()}
    kept = {name: value for name, value in kept.items() if 0 < len(value) <= _LONGEST and value.isascii()}
    return Record(title=title, fields=tuple(kept.items()), source=source) if len(kept) >= 3 else None


def _orders() -> list[Record | None]:
    return [
        _record(
            "Shipping slip",
            f"bokeh/superstore/{index}",
            {
                "Ship mode": row["Ship Mode"],
                "Customer": row["Segment"],
                "City": row["City"],
                "State": row["State"],
                "Item": row["Sub-Category"],
                "Quantity": row["Quantity"],
            },
        )
        for index, row in enumerate(sampledata("SampleSuperstore.csv.gz"))
    ]


def _airports() -> list[Record | None]:
    return [
        _record(
            "Airport sheet",
            f"bokeh/airports/{row['AirportID']}",
            {
                "City": row["City"],
                "Code": row["IATA"],
                "Altitude": row["Altitude"] + " ft",
                "Latitude": f"{float(row['Latitude']):.1f}",
            },
        )
        for row in sampledata("airports.csv")
    ]


def _elements() -> list[Record | None]:
    return [
        _record(
            "Element sheet",
            f"bokeh/elements/{row['symbol']}",
            {
                "Name": row["name"],
                "Symbol": row["symbol"],
                "Number": row["atomic number"],
                "State": row["standard state"],
                "Found": row["year discovered"],
            },
        )
        for row in sampledata("elements.csv")
    ]


def _films() -> list[Record | None]:
    path = package_dir("bokeh_sampledata", "bokeh-sampledata") / "_data" / "movies.db"
    query = "SELECT ID, Title, Year, Director, Genre FROM omdb WHERE Title IS NOT NULL ORDER BY ID LIMIT ?"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as base:
        rows = base.execute(query, (_MAX_FILMS,)).fetchall()
    return [
        _record(
            "Film card",
            f"bokeh/movies/{key}",
            {
                "Film": str(title),
                "Year": str(year or ""),
                "Director": str(director or "").split(",")[0],
                "Genre": str(genre or "").split(",")[0],
            },
        )
        for key, title, year, director, genre in rows
    ]


_FAMILIES: tuple[Callable[[], list[Record | None]], ...] = (_orders, _airports, _elements, _films)


@cache
def records(partition: Partition) -> tuple[tuple[Record, ...], ...]:
    """The records of one partition, one tuple per family of documents."""
    return tuple(
        tuple(record for record in family() if record is not None and partition_of(record.source) == partition)
        for family in _FAMILIES
    )


def make_card(rng: Random, partition: Partition) -> tuple[Record, str]:
    """A record cut to 3 or 4 of its fields in random order, and the colour of its header."""
    record = rng.choice(rng.choice(records(partition)))
    fields = rng.sample(record.fields, min(len(record.fields), rng.randint(3, 4)))
    return Record(title=record.title, fields=tuple(fields), source=record.source), rng.choice(list(COLORS))


def draw_card(rng: Random, record: Record, color: str) -> Image.Image:
    """The form: a coloured header with the title, then one field per line, slightly tilted like a scan."""
    image, pen = canvas((250, 250, 246))
    pen.rectangle((0, 0, 224, 48), fill=COLORS[color])
    ink = INK if color == "yellow" else (255, 255, 255)
    fit_text(pen, (112, 24), record.title, width=208, size=26, anchor="mm", color=ink)
    pitch = 168 / len(record.fields)
    for index, (name, value) in enumerate(record.fields):
        top = 54 + index * pitch
        fit_text(pen, (10, top), f"{name}:", width=204, size=15, color=(110, 110, 110))
        fit_text(pen, (10, top + 15), value, width=204, size=22, smallest=13)
    angle = rng.uniform(-1.5, 1.5)
    return image.rotate(angle, resample=Image.Resampling.BILINEAR, fillcolor=(225, 225, 225))


def ocr_tokens(record: Record) -> str:
    """The words on the card in reading order."""
    return " ".join([record.title, *(f"{name}: {value}" for name, value in record.fields)])


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One document question; metric "anls"."""
    record, color = make_card(rng, partition)
    name, value = rng.choice(record.fields)
    kind = rng.choices(("value", "field", "title", "header"), weights=(60, 15, 10, 15))[0]
    question, answer = {
        "value": (f"What is written under {name}?", value),
        "field": (f"Which field contains {value}?", name),
        "title": ("What is the title of this document?", record.title),
        "header": ("Which color is the header of this document?", color),
    }[kind]
    prompt = lines(f"OCR tokens: {ocr_tokens(record)}", question, SHORT)
    return ask(draw_card(rng, record, color), prompt, answer, metric="anls", source=record.source)


def make_caption(rng: Random, partition: Partition) -> tuple[Image.Image, str, str]:
    """A document, a caption of at most 25 tokens (layout, not the small print), and its source."""
    record, color = make_card(rng, partition)
    names = ", ".join(name for name, _ in record.fields)
    return draw_card(rng, record, color), f"{record.title} with a {color} header. Fields: {names}.", record.source
