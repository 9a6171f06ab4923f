"""OCR-VQA in miniature: the card of a real film, asked for title, director, year and genre.

Title, director and year are too small for a tower that sees 224 pixels, so a prompt that asks for one of them lists the
words of the card (CoIN's OCR-VQA does not). The genre is printed large at a fixed position, and its questions list no
words.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from random import Random

from PIL import Image

from components.data.embedded.drawing import COLORS, INK, canvas, fit_text
from components.data.embedded.facts import Partition, Sample, ask, package_dir, partition_of
from components.data.embedded.mini_coast.prompts import SHORT, lines

_LONGEST = 20  # letters of a title or a name that fit the card
GENRES = ("Drama", "Comedy", "Romance", "Documentary", "Horror", "Thriller", "Sci-Fi", "Biography", "Musical", "War")
_WEIGHTS = {"title": 20, "director": 20, "year": 15, "genre": 20, "drama": 25}


@dataclass(frozen=True, kw_only=True)
class Film:
    """One film with a single genre, as the table gives it."""

    title: str
    director: str
    year: str
    genre: str
    source: str

    @property
    def words(self) -> str:
        """The words of the card in reading order."""
        return ", ".join((self.genre, self.title, self.director, self.year))


def _plain(text: object) -> bool:
    return isinstance(text, str) and 2 < len(text) <= _LONGEST and text.isascii() and "," not in text


@cache
def films(partition: Partition) -> dict[str, tuple[Film, ...]]:
    """Genre -> its films in one partition."""
    path = package_dir("bokeh_sampledata", "bokeh-sampledata") / "_data" / "movies.db"
    query = "SELECT ID, Title, Director, Year, Genre FROM omdb WHERE Year > 0 ORDER BY ID"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as base:
        rows = base.execute(query).fetchall()
    found: dict[str, list[Film]] = {genre: [] for genre in GENRES}
    for key, title, director, year, genre in rows:
        source = f"bokeh/movies/{key}"
        if genre in found and _plain(title) and _plain(director) and partition_of(source) == partition:
            film = Film(title=title, director=director, year=str(year), genre=genre, source=source)
            found[genre].append(film)
    return {genre: tuple(group) for genre, group in found.items()}


def draw_film(rng: Random, film: Film) -> Image.Image:
    """The card: a band with the genre, then title, director and year."""
    image, pen = canvas((250, 248, 240))
    color = rng.choice([name for name in COLORS if name != "yellow"])
    pen.rectangle((0, 0, 224, 70), fill=COLORS[color])
    fit_text(pen, (112, 35), film.genre, width=212, size=38, anchor="mm", color=(255, 255, 255))
    fit_text(pen, (112, 108), film.title, width=212, size=34, anchor="mm", smallest=15)
    fit_text(pen, (112, 140), "directed by", width=212, size=14, anchor="mm", color=(110, 110, 110))
    fit_text(pen, (112, 162), film.director, width=212, size=26, anchor="mm", smallest=14)
    fit_text(pen, (112, 200), film.year, width=212, size=30, anchor="mm", color=INK)
    return image


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One question about a film card; metric "exact"."""
    kind = rng.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))[0]
    groups = films(partition)
    if kind == "drama":
        answer = rng.choice(("yes", "no"))
        genre = "Drama" if answer == "yes" else rng.choice([name for name in GENRES if name != "Drama"])
    else:
        answer, genre = "", rng.choice(GENRES)
    film = rng.choice(groups[genre])
    question, answer = {
        "title": ("What is the title of this film?", film.title),
        "director": ("Who directed this film?", film.director),
        "year": ("Which year is on the card?", film.year),
        "genre": ("What is the genre of this film?", film.genre),
        "drama": ("Is this film a drama?", answer),
    }[kind]
    words = (f"Words on the card: {film.words}",) if kind in ("title", "director", "year") else ()
    prompt = lines(question, *words, SHORT)
    return ask(draw_film(rng, film), prompt, answer, metric="exact", source=film.source)
