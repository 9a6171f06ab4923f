"""The tables of a preparation's report, the same in a terminal and on the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from components.data.quality.overlaps import Counts, Overlap, Shared
from components.data.quality.report import FileReport, ImportReport
from components.data.quality.survey import LARGE, Range, StreamSurvey


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """Lines of texts; the first columns hold names, the others numbers."""

    caption: str
    names: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    lines: tuple[tuple[str, ...], ...]


def splits_table(report: ImportReport, *, sources: bool) -> ReportTable:
    """One line for each split, with its source if wanted; columns without a meaning for this stream are left out."""
    columns: list[tuple[str, bool, Callable[[FileReport], str]]] = [
        ("rows read", True, lambda file: f"{file.rows:,}"),
        ("published", report.released, lambda file: " or ".join(f"{size:,}" for size in file.published) or "-"),
        ("taken", report.drawn, lambda file: f"{file.taken:,}"),
        ("kept", True, lambda file: f"{file.kept:,}"),
        ("with picture", True, lambda file: f"{file.with_image:,}"),
        ("new ids", report.renewed, lambda file: f"{file.repeated_ids:,}"),
        ("problems", True, lambda file: f"{file.found.total():,}"),
    ]
    shown = [(name, cell) for name, wanted, cell in columns if wanted]
    return ReportTable(
        caption="Rows of every split",
        names=("split", "source") if sources else ("split",),
        numbers=tuple(name for name, _ in shown),
        lines=tuple(
            (file.name, *((file.file,) if sources else ()), *(cell(file) for _, cell in shown)) for file in report.files
        ),
    )


_SHARED = ("pictures", "questions", "both", "near-blank")


def leaks_table(shared: Shared) -> ReportTable:
    """One line for each task whose test rows resemble training rows."""
    return ReportTable(
        caption="Test rows that resemble a training row of the stream",
        names=("test rows of",),
        numbers=_SHARED,
        lines=tuple((leak.task, *_counts(leak)) for leak in shared.leaks),
    )


def pairs_table(pairs: Sequence[Overlap]) -> ReportTable:
    """One line for each pair of splits."""
    return ReportTable(
        caption="Rows of one split that resemble rows of another",
        names=("rows of", "resemble"),
        numbers=_SHARED,
        lines=tuple((pair.second, pair.first, *_counts(pair)) for pair in pairs),
    )


def _counts(of: Counts) -> tuple[str, ...]:
    pictures = f"{of.pictures:,} of {of.pictured:,}" if of.pictured else "-"
    near_blank = f"{of.near_blank:,}" if of.near_blank else "-"
    return pictures, f"{of.questions:,} of {of.rows:,}", f"{of.repeats:,}", near_blank


def pictures_table(seen: StreamSurvey) -> ReportTable:
    """One line for each split with pictures."""
    return ReportTable(
        caption="Width and height in pixels and size of the encoded file: smallest, median and largest picture",
        names=("split",),
        numbers=("with picture", "distinct", "width", "height", "file", f"above {LARGE // 1_000_000} megapixels"),
        lines=tuple(
            (
                split.name,
                f"{split.pictures.rows:,}",
                f"{split.pictures.distinct:,}",
                _range(split.pictures.width),
                _range(split.pictures.height),
                _range(split.pictures.file_bytes, size),
                f"{split.pictures.large:,}",
            )
            for split in seen.splits
            if split.pictures is not None
        ),
    )


def answers_table(seen: StreamSurvey) -> ReportTable:
    """One line for each split."""
    return ReportTable(
        caption="Characters of the first accepted answer: smallest, median and largest row",
        names=("split",),
        numbers=("rows", "characters"),
        lines=tuple((split.name, f"{split.rows:,}", _range(split.answer_characters)) for split in seen.splits),
    )


def licences_table(report: ImportReport) -> ReportTable:
    """One line for all sources with the same terms."""
    return ReportTable(
        caption="Terms of every source, and where to get it; the publishers' own terms are what counts",
        names=("tasks", "licence", "where to get it"),
        lines=tuple((", ".join(one.tasks), one.licence, one.get or "your own files") for one in report.licences),
    )


def _range(of: Range, words: Callable[[int], str] = "{:,}".format) -> str:
    ends = [words(value) for value in (of.smallest, of.median, of.largest)]
    return ends[0] if len(set(ends)) == 1 else " / ".join(ends)


def size(count: int) -> str:
    """A file's size for reading, such as 1.2 MB."""
    for unit, factor in (("MB", 1_000_000), ("kB", 1_000)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count} bytes"
