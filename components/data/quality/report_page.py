"""A preparation's report as one HTML page: everything in one file, no scripts, nothing loaded from elsewhere.

Texts and pictures come from unchecked data: texts are escaped and cut, pictures are copies that
components/data/quality/thumbnails.py made, and the page forbids its browser to run or fetch anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.core.errors import DataError, StorageError
from components.core.files import write_text
from components.core.location import Place
from components.core.visible import visible
from components.data.quality import report_tables
from components.data.quality.overlaps import EXAMPLES, Overlap, Shared
from components.data.quality.report import ImportReport
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
Picture = tuple[str, str]  # its split and sample id
PAGES = Path(__file__).with_name("pages")


def pairs_of(found: Sequence[Overlap]) -> list[tuple[Picture, Picture]]:
    """The pairs of pictures to show: one of every overlap before a second one of any."""
    pairs = [
        ((overlap.first, overlap.examples[at][0]), (overlap.second, overlap.examples[at][1]))
        for at in range(EXAMPLES)
        for overlap in found
        if at < len(overlap.examples)
    ]
    return pairs[:PAIRS]


def pictures_of(pairs: Sequence[tuple[Picture, Picture]]) -> dict[str, set[str]]:
    """Sample ids in `pairs`, by split."""
    wanted: dict[str, set[str]] = {}
    for split, sample_id in (picture for pair in pairs for picture in pair):
        wanted.setdefault(split, set()).add(sample_id)
    return wanted


def write_page(path: Place, report: ImportReport, found: Shared | None, seen: StreamSurvey | None) -> None:
    """Write the page of `report` to `path`; raises `DataError`.

    `found` is None when overlaps were not looked for, `seen` when nothing was written.
    """
    pairs = pairs_of(found.pairs if found is not None and seen is not None else ())
    kept = seen.pictures if seen is not None else {}
    none = Thumbnail(missing="not kept")
    page = (
        page_environment(PAGES)
        .get_template("report.html")
        .render(
            report=report,
            headlines=_HEADLINES,
            troubled=[file for file in report.files if file.problems],
            tables={
                "splits": report_tables.splits_table(report, sources=True),
                "leaks": None if found is None else report_tables.leaks_table(found),
                "pairs": None if found is None else report_tables.pairs_table(found.pairs),
                "pictures": None if seen is None else report_tables.pictures_table(seen),
                "answers": None if seen is None else report_tables.answers_table(seen),
                "licences": report_tables.licences_table(report),
            },
            shared=found,
            pairs=[(first, kept.get(first, none), second, kept.get(second, none)) for first, second in pairs],
            splits=seen.splits if seen is not None else (),
            shown_problems=PROBLEMS,
            shown_turns=_TURNS,
        )
    )
    try:
        write_text(path, page)
    except StorageError:
        raise
    except OSError as error:
        raise DataError(f"the page {path} cannot be written ({error.strerror}).") from error


def page_environment(*folders: Path) -> Environment:
    """What renders the templates in `folders`, escaped and neutralised; filters cut texts and write numbers."""
    environment = Environment(
        autoescape=True,
        finalize=_shown,
        loader=FileSystemLoader(folders),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(cut=_cut, number="{:,}".format)
    return environment


def _shown(value: object) -> object:
    """What the page shows of a value; markup that was made here, scripts among it, is left as it is."""
    return visible(value) if type(value) is str else value


def _cut(text: object, length: int = _TEXT) -> str:
    """A text of at most `length` characters that any file can hold."""
    whole = str(text).encode(errors="replace").decode()
    return whole if len(whole) <= length else f"{whole[:length].rstrip()} … ({len(whole):,} characters)"
