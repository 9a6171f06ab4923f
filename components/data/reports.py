"""What is wrong with data that is being read: one problem, one file's tally, and the report of a whole preparation."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from components.errors import DataError

_KEPT_PROBLEMS = 1000  # per file; all are counted, the first ones are listed
_WRITTEN = ("task", "split", "file", "rows", "chosen", "kept", "with_image", "repeated_ids", "published", "missed")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with one row (counted from 1; None for a fault of the whole file)."""

    kind: str
    file: str
    row: int | None
    detail: str

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file} row {self.row}"
        return f"{place}: {self.detail}"


class ItemError(Exception):
    """One item that cannot become a row: a short kind for counting, and a sentence."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass(kw_only=True)
class FileReport:
    """What was found in one source of one split: rows left out by kind (`counts`) and rows kept but odd (`notes`)."""

    task: str
    split: str
    file: str
    rows: int = 0
    """Items in the source."""
    chosen: int | None = None
    """Items that the stream's specification takes of them; None: all."""
    kept: int = 0
    with_image: int = 0
    repeated_ids: int = 0
    """Rows whose id was used before and that were given a new one: releases whose ids name the picture."""
    published: tuple[int, ...] = ()
    """Sizes that the source is said to have; more than one when its publishers disagree."""
    counts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    @property
    def broken_share(self) -> float:
        return (self.rows - self.kept) / self.rows if self.rows else 1.0

    @property
    def missed(self) -> int:
        """Rows that were to be taken and could not be."""
        return (self.rows if self.chosen is None else self.chosen) - self.kept

    def add(self, kind: str, row: int | None, detail: str) -> None:
        """Count one problem of this file and keep it while there is room."""
        self.leave_out(Problem(kind=kind, file=self.file, row=row, detail=detail))

    def leave_out(self, problem: Problem) -> None:
        """Count a row that is left out."""
        self.counts[problem.kind] += 1
        self._list(problem)

    def note(self, problem: Problem) -> None:
        """Count something odd about a row that stays, or about the file."""
        self.notes[problem.kind] += 1
        self._list(problem)

    def _list(self, problem: Problem) -> None:
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(problem)


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """The outcome of a preparation; `refused` names why nothing was written, or is None."""

    stream: str
    out_dir: Path
    files: tuple[FileReport, ...]
    refused: str | None
    spec: str | None = None
    """Digest of the specification of a published stream."""

    @property
    def problems(self) -> list[Problem]:
        return [problem for report in self.files for problem in report.problems]

    def write(self, path: Path) -> None:
        """The report as JSON; raises `DataError`."""
        plain = {
            "stream": self.stream,
            "spec": self.spec,
            "refused": self.refused,
            "files": [
                {
                    **{name: getattr(report, name) for name in _WRITTEN},
                    "counts": dict(report.counts),
                    "notes": dict(report.notes),
                    "problems": [asdict(problem) for problem in report.problems],
                }
                for report in self.files
            ],
        }
        try:
            path.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"the report {path} cannot be written ({error.strerror}).") from error


def refused_report_path(out_dir: Path) -> Path:
    """Where the report of a refused preparation lies."""
    return out_dir.absolute().with_name(f"{out_dir.absolute().name}.report.json")
