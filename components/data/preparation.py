"""When a preparation from a published release is refused: rows that should be there and are not."""

from __future__ import annotations

from collections.abc import Sequence

from components.core.errors import ConfigError
from components.data.quality.report import FileReport

ALLOWED_LOSS = 0.01  # of the rows of a published split: releases have a few broken rows of their own


def check_max_broken(max_broken: float) -> None:
    """Raises `ConfigError` for what is no share."""
    if not 0 <= max_broken < 1:
        raise ConfigError(f"max_broken is the share of broken rows to leave out, 0 to below 1; {max_broken} was given.")


def refusal(files: Sequence[FileReport], *, max_broken: float, strict: bool) -> str | None:
    """Why nothing of a release may be written, in one sentence without its period; None when it may be.

    A split refuses without rows, without any picture where its source has some, and when it loses a larger share of
    its rows than `max_broken`; `strict` refuses everything that was reported.
    """
    for file in files:
        first = str(file.problems[0]).rstrip(".") if file.problems else "the source holds no items"
        if not file.kept:
            return f"no row of {file.name} could be read; {first}"
        if file.pictured and not file.with_image:
            return f"no row of {file.name} has its picture, {file.lost:,} rows would be left out; the first: {first}"
    odd = [file for file in files if file.problems]
    if strict and odd:
        found = sum(file.faults.total() for file in odd)
        splits = ", ".join(file.name for file in odd)
        return f"--strict: {found} problems in {splits}; the first: {odd[0].problems[0]}".rstrip(".")
    worst = max(files, key=lambda file: file.lost_share)
    return _too_many(worst, max_broken) if worst.lost_share > max_broken else None


def _too_many(file: FileReport, max_broken: float) -> str:
    allowed = f"allowed is {max_broken:.1%}: download the release again, or allow more with --max-broken"
    if file.cut and not file.published:
        return f"{file.cut} of {file.name} breaks off after {file.rows - 1:,} rows; download it again"
    if file.cut:
        sizes = " or ".join(f"{size:,}" for size in file.published)
        return f"{file.cut} of {file.name} breaks off: {file.rows - 1:,} of {sizes} rows are there; {allowed}"
    share = f"{file.lost:,} of {file.rows:,} rows of {file.name} would be left out, {file.lost_share:.1%}"
    lost = next((problem for problem in file.problems if problem.kind not in file.by_rule), "see the report")
    return f"{share}; {allowed}; the first: {lost}".rstrip(".")
