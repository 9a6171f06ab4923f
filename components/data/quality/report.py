"""The report of a preparation: a tally for each source file, and the outcome of the whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from components.core.errors import DataError, StorageError
from components.core.files import write_bytes
from components.core.location import Place
from components.data.problems import Problem
from components.data.quality.checks import DONE, EXPLANATIONS, UNEXPLAINED
from components.data.rows import Row

_KEPT_PROBLEMS = 1000  # per file; all are counted, the first ones are listed
_WRITTEN = ("task", "split", "file", "rows", "chosen", "kept", "with_image", "repeated_ids", "published", "missed")
_WRITTEN += ("licence", "get")
NOT_STATED = "not stated"
_ONE_BY_ONE = 8  # numbers of pictures that are listed one by one


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
    by_pictures: Counter[int] = field(default_factory=Counter)
    """Rows by how many pictures they have."""
    repeated_ids: int = 0
    """Rows whose id was used before and that were given a new one: releases whose ids name the picture."""
    published: tuple[int, ...] = ()
    """Sizes that the source is said to have; more than one when its publishers disagree."""
    licence: str = NOT_STATED
    get: str = ""
    """Where the source is found; empty for a user's own files."""
    by_rule: frozenset[str] = frozenset()
    """Kinds of rows that the reader leaves out on purpose, as its page says: reported, but not counted as lost."""
    unread: int = 0
    """Rows that were lost before it was known whether they are taken: their annotation cannot be read."""
    cut: str = ""
    """A file that breaks off, so that the number of its rows is unknown."""
    pictured: bool = False
    """Whether a row of the source names a picture."""
    pictures: Counter[str] = field(default_factory=Counter)
    """Rows by what is done to their pictures before they are learned: keys of `quality.checks.DONE`."""
    fields: Counter[str] = field(default_factory=Counter)
    """Rows, by a field that they have and that means nothing here."""
    counts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.task} {self.split}"

    @property
    def taken(self) -> int:
        """Rows that were to be taken."""
        return self.rows if self.chosen is None else self.chosen

    @property
    def found(self) -> Counter[str]:
        """Everything that was found, by kind."""
        return self.counts + self.notes

    @property
    def broken_share(self) -> float:
        return (self.rows - self.kept) / self.rows if self.rows else 1.0

    @property
    def missed(self) -> int:
        """Rows that were to be taken and could not be."""
        return self.taken - self.kept

    @property
    def lost(self) -> int:
        """Rows that are left out and should not be."""
        return sum(count for kind, count in self.counts.items() if kind not in self.by_rule)

    @property
    def lost_share(self) -> float:
        """Share of the source that cannot be used: annotations that cannot be read, and taken rows without a picture.

        A file that breaks off has lost what is missing of its published size, or all where that is not known.
        """
        read = 1 - self.unread / self.rows if self.rows else 0.0
        used = 1 - (self.lost - self.unread) / self.taken if self.taken else 0.0
        share = round(1 - read * used, 9)  # 2 of 200 are one in a hundred, whatever the last bit says
        if not self.cut:
            return share
        return max(share, 1 - self.rows / min(self.published) if self.published else 1.0)

    def add(self, kind: str, row: int | None, detail: str) -> None:
        """Count one problem of this file and keep it while there is room."""
        self.leave_out(Problem(kind=kind, file=self.file, row=row, detail=detail))

    def keep(self, row: Row, done: Iterable[str]) -> None:
        """Count a row that is written; `done` are keys of `checks.DONE`, what was done to its pictures."""
        self.kept += 1
        self.with_image += bool(row.pictures)
        self.by_pictures[len(row.pictures)] += 1
        self.pictures.update(done)

    def leave_out(self, problem: Problem) -> None:
        """Count a row that is left out."""
        self.counts[problem.kind] += 1
        self._list(problem)

    def note(self, problem: Problem) -> None:
        """Count something odd about a row that stays, or about the file."""
        self.notes[problem.kind] += 1
        self._list(problem)

    def note_size(self) -> None:
        """Note a source that does not have a published size."""
        if self.published and self.rows not in self.published:
            sizes = " or ".join(f"{size:,}" for size in self.published)
            detail = f"the source has {self.rows:,} rows, published are {sizes}"
            self.note(Problem(kind="count", file=self.file, row=None, detail=detail))

    def _list(self, problem: Problem) -> None:
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(problem)


@dataclass(frozen=True, kw_only=True)
class ProblemKind:
    """One kind of problem in a whole preparation: how often in which splits, what it means and what to do."""

    kind: str
    count: int
    splits: tuple[tuple[str, int], ...]
    left_out: bool
    """Whether rows with it are left out; else they stay, or it is about a file."""
    meaning: str
    advice: str

    @property
    def outcome(self) -> str:
        """How many, and what became of them."""
        if self.kind == "no rows":
            return f"{self.count:,} {'source' if self.count == 1 else 'sources'} without a row"
        rows = "row" if self.count == 1 else "rows"
        return f"{self.count:,} {rows} left out" if self.left_out else f"{self.count:,} noted and kept"


@dataclass(frozen=True, kw_only=True)
class Licence:
    """Under which terms sources are published, where they are found, and the tasks that read them."""

    licence: str
    get: str
    tasks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """The outcome of a preparation; `refused` names why nothing was written, or is None."""

    stream: str
    out_dir: Place
    files: tuple[FileReport, ...]
    refused: str | None
    spec: str | None = None
    """Digest of the specification of a published stream."""
    leaks: tuple[str, ...] | None = None
    """What test rows share with training rows, one sentence a task; None where this was not checked."""
    lengths: tuple[str, ...] = ()
    """How many tokens the rows of each split take with a model, a sentence for each; empty where none was named."""

    @property
    def problems(self) -> list[Problem]:
        return [problem for report in self.files for problem in report.problems]

    @property
    def own(self) -> bool:
        """Whether these are a user's own files, and no release that is found somewhere."""
        return not any(file.get for file in self.files)

    @property
    def released(self) -> bool:
        """Whether any source has a published size; `drawn`: whether a specification takes part of any."""
        return any(file.published for file in self.files)

    @property
    def drawn(self) -> bool:
        return any(file.taken != file.rows for file in self.files)

    @property
    def renewed(self) -> bool:
        """Whether any row got a new id."""
        return any(file.repeated_ids for file in self.files)

    @property
    def state(self) -> Literal["refused", "problems", "shared", "whole", "clean"]:
        """What the headline says: `shared` when test rows resemble training rows, `whole` when that was not checked."""
        if self.refused is not None:
            return "refused"
        if self.kinds:
            return "problems"
        return "whole" if self.leaks is None else "shared" if self.leaks else "clean"

    @property
    def verdict(self) -> str:
        """The outcome in one sentence; `leaks` says what test rows share with training rows."""
        if self.refused is not None:
            return f"Refused, nothing was written: {self.refused}."
        rows = sum(file.kept for file in self.files)
        left = sum(file.counts.total() for file in self.files)
        written = f"{rows:,} rows in {len(self.files)} {'split' if len(self.files) == 1 else 'splits'} were written"
        outcome = {
            "problems": f"{self._found()}: {written}, {_rows_were(left)} left out",
            "shared": f"Test rows resemble training rows: {written}, nothing is broken",
            "whole": f"Nothing is broken: {written}; overlaps between splits were not checked",
            "clean": f"Clean: {written}, nothing is wrong",
        }[self.state]
        return f"{outcome}."

    def _found(self) -> str:
        found = sum(kind.count for kind in self.kinds)
        where = sum(bool(file.found) for file in self.files)
        return f"{found:,} {'problem' if found == 1 else 'problems'} in {where} {'split' if where == 1 else 'splits'}"

    @property
    def kinds(self) -> tuple[ProblemKind, ...]:
        """Every kind of problem that was found, those that cost rows first, then by count."""
        found: list[ProblemKind] = []
        for left_out in (True, False):
            tables = {file.name: file.counts if left_out else file.notes for file in self.files}
            for kind in dict.fromkeys(kind for table in tables.values() for kind in table):
                splits = tuple((name, table[kind]) for name, table in tables.items() if table[kind])
                known = EXPLANATIONS.get(kind, UNEXPLAINED)
                count = sum(number for _, number in splits)
                found.append(
                    ProblemKind(
                        kind=kind,
                        count=count,
                        splits=splits,
                        left_out=left_out,
                        meaning=known.meaning,
                        advice=known.own_advice if self.own and known.own_advice else known.advice,
                    )
                )
        return tuple(sorted(found, key=lambda kind: (not kind.left_out, -kind.count, kind.kind)))

    @property
    def remarks(self) -> tuple[str, ...]:
        """How many pictures rows have, what was done to them, which fields were not read, and how long rows are.

        A sentence for each split.
        """
        found: list[str] = []
        for file in self.files:
            if max(file.by_pictures, default=0) > 1:
                found.append(f"Rows of {file.name}, by number of pictures: {rows_by_pictures(file.by_pictures)}.")
            if file.pictures:
                done = ", ".join(f"{DONE[kind]} {count:,}" for kind, count in file.pictures.items())
                found.append(f"Pictures of {file.name}: {done}.")
            if file.fields:
                names = ", ".join(f"{name} {count:,}" for name, count in file.fields.most_common())
                found.append(f"Rows of {file.name} with fields that mean nothing here and are not read: {names}.")
        return (*found, *self.lengths)

    @property
    def licences(self) -> tuple[Licence, ...]:
        """The terms of all sources, each once, in the stream's order."""
        tasks: dict[tuple[str, str], list[str]] = {}
        for file in self.files:
            tasks.setdefault((file.licence, file.get), []).append(file.task)
        return tuple(
            Licence(licence=licence, get=get, tasks=tuple(dict.fromkeys(names)))
            for (licence, get), names in tasks.items()
        )

    def write(self, path: Place, more: Mapping[str, object] | None = None) -> None:
        """Write the report as JSON, with the entries of `more` added; raises `DataError`."""
        plain = {
            "stream": self.stream,
            "spec": self.spec,
            "state": self.state,
            "verdict": self.verdict,
            "refused": self.refused,
            "leaks": None if self.leaks is None else list(self.leaks),
            "faults": [asdict(kind) for kind in self.kinds],
            "remarks": list(self.remarks),
            "licences": [asdict(licence) for licence in self.licences],
            "files": [
                {
                    **{name: getattr(report, name) for name in _WRITTEN},
                    "by_pictures": dict(sorted(report.by_pictures.items())),
                    "pictures": dict(report.pictures),
                    "fields_not_read": dict(report.fields),
                    "counts": dict(report.counts),
                    "notes": dict(report.notes),
                    "problems": [asdict(problem) for problem in report.problems],
                }
                for report in self.files
            ],
            **(more or {}),
        }
        try:
            text = json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
            write_bytes(path, text.encode(errors="backslashreplace"))  # file names need not be Unicode
        except StorageError:
            raise
        except OSError as error:
            raise DataError(f"the report {path} cannot be written ({error.strerror}).") from error


def rows_by_pictures(rows: Mapping[int, int]) -> str:
    """`3 without a picture, 12,000 with 1, 40 with 2, 7 with 9 to 16`: numbers above 8 in bands that double."""
    bands: Counter[str] = Counter()
    for number, count in sorted(rows.items()):
        low = 1 << (number - 1).bit_length() - 1 if number > _ONE_BY_ONE else 0
        bands[f"with {low + 1} to {2 * low}" if low else f"with {number}" if number else "without a picture"] += count
    return ", ".join(f"{count:,} {band}" for band, count in bands.items() if count)


def _rows_were(count: int) -> str:
    return f"{count:,} {'row was' if count == 1 else 'rows were'}"


def refused_report_path(out_dir: Place, ending: str = "json") -> Place:
    """The place of the report of a refused preparation, or of its page (`html`)."""
    folder = out_dir.absolute() if isinstance(out_dir, Path) else out_dir
    return folder.parent / f"{folder.name}.report.{ending}"
