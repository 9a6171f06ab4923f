"""A preparation's report as one HTML page: everything in one file, no scripts, nothing loaded from elsewhere.

Texts and pictures come from unchecked data: texts are escaped and cut, pictures are copies that
components/data/quality/thumbnails.py made, and the page forbids its browser to run or fetch anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.core.errors import DataError
from components.core.files import write_text
from components.data.quality.overlaps import EXAMPLES, Overlap, Shared
from components.data.quality.report import ImportReport
from components.data.quality.report_tables import (
    answers_table,
    leaks_table,
    licences_table,
    pairs_table,
    pictures_table,
    splits_table,
)
from components.data.quality.survey import StreamSurvey
from components.data.quality.thumbnails import Thumbnail

PAIRS = 12  # pairs of look-alike pictures shown
PROBLEMS = 12  # shown of each split; report.json lists more
_TURNS = 4  # shown of a sample row
_TEXT = 400  # characters shown of one text
_HEADLINES = {
    "clean": "✓ Clean",
    "whole": "✓ Nothing is broken",
    "shared": "! Test rows resemble training rows",
    "problems": "! Problems found",
    "refused": "✗ Refused",
}
PAGES = Path(__file__).with_name("pages")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two look-alike pictures, each named by its split and sample id."""

    first: tuple[str, str]
    second: tuple[str, str]


def pairs_of(found: Sequence[Overlap]) -> list[Pair]:
    """The pairs of pictures to show: one of every overlap before a second one of any."""
    pairs = [
        Pair(first=(overlap.first, overlap.examples[at][0]), second=(overlap.second, overlap.examples[at][1]))
        for at in range(EXAMPLES)
        for overlap in found
        if at < len(overlap.examples)
    ]
    return pairs[:PAIRS]


def pictures_of(pairs: Sequence[Pair]) -> dict[str, set[str]]:
    """Sample ids in `pairs`, by split."""
    wanted: dict[str, set[str]] = {}
    for split, sample_id in (picture for pair in pairs for picture in (pair.first, pair.second)):
        wanted.setdefault(split, set()).add(sample_id)
    return wanted


def write_page(path: Path, report: ImportReport, found: Shared | None, seen: StreamSurvey | None) -> None:
    """Write the page of `report` to `path`; raises `DataError`.

    `found` is None when overlaps were not looked for, `seen` when nothing was written.
    """
    pairs = pairs_of(found.pairs if found is not None else ())
    none = Thumbnail(missing="not kept")
    page = (
        page_environment(PAGES)
        .get_template("report.html")
        .render(
            report=report,
            headlines=_HEADLINES,
            troubled=[file for file in report.files if file.problems],
            tables={
                "splits": splits_table(report, sources=True),
                "leaks": None if found is None else leaks_table(found),
                "pairs": None if found is None else pairs_table(found.pairs),
                "pictures": None if seen is None else pictures_table(seen),
                "answers": None if seen is None else answers_table(seen),
                "licences": licences_table(report),
            },
            shared=found,
            pairs=[
                (pair.first, seen.pictures.get(pair.first, none), pair.second, seen.pictures.get(pair.second, none))
                for pair in pairs
            ]
            if seen is not None
            else [],
            splits=seen.splits if seen is not None else (),
            shown_problems=PROBLEMS,
            shown_turns=_TURNS,
        )
    )
    try:
        write_text(path, page)
    except OSError as error:
        raise DataError(f"the page {path} cannot be written ({error.strerror}).") from error


def page_environment(*folders: Path) -> Environment:
    """What renders the templates in `folders`: everything is escaped; filters cut texts and write numbers."""
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(folders),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(cut=_cut, number=_number)
    return environment


def _cut(text: object, length: int = _TEXT) -> str:
    """A text of at most `length` characters that any file can hold."""
    whole = str(text).encode(errors="replace").decode()
    return whole if len(whole) <= length else f"{whole[:length].rstrip()} … ({len(whole):,} characters)"


def _number(number: int) -> str:
    return f"{number:,}"
