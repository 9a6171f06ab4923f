"""A published release becomes a prepared stream: Parquet splits with the specification's digest, and a report.

Every source is read twice. The first pass reads annotations only and decides which items are used; the second opens
and decodes their pictures and writes them shard by shard. Nothing but the annotation file, where it is one JSON
object, a few rows per worker, and a digest and name of every picture of one split is in memory.

An interrupted preparation can be resumed: splits that were written whole and without problems are kept beside the
output until the same command, over the same annotations, ends. Pictures that changed in between go unnoticed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

from components.core.errors import DataError
from components.core.files import write_text
from components.core.location import Place
from components.data import preparation
from components.data.benchmarks.raw import Checked, RawItem, SplitContext, check_item, question_keys
from components.data.benchmarks.readers import READERS
from components.data.benchmarks.sampling import Selection, select, selected
from components.data.benchmarks.spec import PartSpec, Side, StreamSpec, TaskSpec
from components.data.formats.parallel_map import SERIAL, OrderedMap
from components.data.formats.pictures import Orientation
from components.data.prepared import write_stream_json
from components.data.problems import Problem
from components.data.quality.report import FileReport, ImportReport
from components.data.rows import Row, Split, open_split, verify_split, write_split

SIDES: tuple[Side, ...] = ("test", "train")  # test first: training rows are compared with it
_MARK = ".whole"


def prepare_benchmark(
    stream: StreamSpec,
    root: Path,
    out_dir: Place,
    *,
    max_broken: float = preparation.ALLOWED_LOSS,
    strict: bool = False,
    orientation: Orientation = "apply",
    in_order: OrderedMap = SERIAL,
) -> ImportReport:
    """Write `stream` from the releases below `root` to `out_dir`; rows that cannot be read are left out and reported.

    Refused is a split that loses a larger share of its rows than `max_broken` (see `release_refusal`); `strict` refuses
    when anything at all was reported. Refused: `out_dir` stays as it was and the report is `<out_dir>.report.json`.
    Raises `DataError` when a release is not below `root`, naming the layout that is expected. `orientation` "leave"
    takes pictures as they are stored, as LLaVA's released code does; `in_order` opens them.
    """
    preparation.check_max_broken(max_broken)
    root = preparation.release_root(root, "the releases")
    for task, side in product(stream.tasks, SIDES):  # every release must be there before any is read
        READERS[task.family].read(root, task, side)

    def write(folder: Place) -> Iterator[FileReport]:
        for task in stream.tasks:
            yield from _TaskPreparation(
                stream=stream,
                task=task,
                root=root,
                folder=folder / task.name,
                in_order=in_order,
                orientation=orientation,
            ).run()

    def finish(folder: Place) -> None:
        if isinstance(folder, Path):  # in a store, only what the markers list is taken over
            _tidy(folder, stream)
        write_stream_json(folder, stream.name, {task.name: task.max_new_tokens for task in stream.tasks})

    refusal = partial(preparation.release_refusal, max_broken=max_broken, strict=strict)
    return preparation.prepare(
        stream.name, out_dir, write, finish, refusal, unfinished=preparation.whole_or_later, spec=stream.digest
    )


def _tidy(scratch: Path, stream: StreamSpec) -> None:
    """Leave nothing but the stream's splits: no marks, and nothing of a call for another stream or of a killed one."""
    for path in scratch.glob("*/*"):
        if path.parent.name in stream.task_names and path.name in SIDES:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for folder in scratch.iterdir():
        if folder.is_dir() and folder.name not in stream.task_names:
            folder.rmdir()


@dataclass(kw_only=True)
class _TaskPreparation:
    """Both splits of one task."""

    stream: StreamSpec
    task: TaskSpec
    root: Path
    folder: Place
    in_order: OrderedMap
    orientation: Orientation
    test_keys: set[bytes] = field(default_factory=set)

    def run(self) -> list[FileReport]:
        """Write the splits; the reports are in the order train, test."""
        return [self._split(side) for side in SIDES][::-1]

    def _split(self, side: Side) -> FileReport:
        part = self.task.part(side)
        where = " ".join(filter(None, (self.task.family, self.task.variant, self.task.subset, part.source)))
        family = READERS[self.task.family]
        report = FileReport(
            task=self.task.name,
            split=side,
            file=where,
            published=part.published,
            licence=family.licence,
            get=family.get,
            by_rule=family.by_rule,
        )
        selection = select(self._items(side), self.stream, self.task, side, report)
        if not self._kept(side, selection, report):
            self._written(side, selection, report)
        _compare(report, part)
        return report

    def _items(self, side: Side) -> Iterator[RawItem | Problem]:
        return READERS[self.task.family].read(self.root, self.task, side)

    def _mark(self, side: Side) -> Place:
        return self.folder / f"{side}{_MARK}"

    def _state(self, side: Side, selection: Selection) -> str:
        """What a split depends on; the training part also on the test part, which it is compared with."""
        compared = b"".join(sorted(self.test_keys)) if side == "train" else b""
        parts = f"{self.stream.digest}\n{self.root}\n{selection.digest}\n{self.orientation}\n".encode()
        return hashlib.sha256(parts + compared).hexdigest()

    def _kept(self, side: Side, selection: Selection, report: FileReport) -> bool:
        """Reuse a split that an earlier call wrote whole from the same annotations, if there is one."""
        mark = self._mark(side)
        if not mark.is_file() or mark.read_text(encoding="utf-8") != self._state(side, selection):
            return False
        try:
            split = open_split(self.folder / side)
            verify_split(split)
        except DataError:
            return False  # damaged since: it is written again
        report.kept = split.num_rows
        report.with_image = sum(width is not None for width in split.column("width"))
        report.by_pictures.update({0: report.kept - report.with_image, 1: report.with_image})
        pictures = split.card.get("pictures")
        report.pictures.update(pictures if isinstance(pictures, dict) else {})
        if side == "test":
            self.test_keys.update(key for row in split.rows() for key in question_keys(row))
        return True

    def _written(self, side: Side, selection: Selection, report: FileReport) -> Split:
        self._mark(side).unlink(missing_ok=True)
        items = selected(self._items(side), selection, self.stream, self.task, side)
        check = partial(check_item, context=SplitContext.of(self.root, self.task, side, self.orientation))
        part = self.task.part(side)
        before = report.counts.total()
        card: dict[str, object] = {
            "name": f"{self.stream.name}/{self.task.name}",
            "spec": self.stream.digest,
            "seed": self.stream.seed,
            "source": report.file,
            "source_rows": report.rows,
            "published_rows": list(part.published),
            "metric": self.task.metric,
            "licence": READERS[self.task.family].licence,
            "pictures": report.pictures,  # written when all are counted
        }
        rows = self._rows(self.in_order(check, items), side, report)
        split = write_split(rows, self.folder / side, task=self.task.name, split=side, card=card)
        if report.counts.total() == before and not report.notes:
            write_text(self._mark(side), self._state(side, selection))
        return split

    def _rows(self, checked: Iterable[Checked | Problem], side: Side, report: FileReport) -> Iterator[Row]:
        names: dict[bytes, str] = {}  # by a picture's digest, the file that had it first
        reported: set[str] = set()
        for one in checked:
            if isinstance(one, Problem):
                report.leave_out(one)
                continue
            report.keep(one.row, one.done)
            for note in (*one.notes, *_repeated(one, names, reported)):
                report.note(note)
            if side == "test":
                self.test_keys.update(one.keys)
            elif not self.test_keys.isdisjoint(one.keys):
                detail = "the same question about the same picture is in the test part"
                report.note(Problem(kind="leaked", file=one.file, row=one.number, detail=detail))
            yield one.row


def _repeated(one: Checked, names: dict[bytes, str], reported: set[str]) -> Iterator[Problem]:
    """A note when a row's picture has the bytes of an earlier one under another name; once for each file."""
    digest, name = one.picture or (b"", "")
    if name and name != (earlier := names.setdefault(digest, name)) and name not in reported:
        reported.add(name)
        detail = f"the picture {name} has the same bytes as {earlier}"
        yield Problem(kind="duplicate picture", file=one.file, row=one.number, detail=detail)


def _compare(report: FileReport, part: PartSpec) -> None:
    """Note a source without its published size, or with too few rows for the specification."""

    def note(detail: str) -> None:
        report.note(Problem(kind="count", file=report.file, row=None, detail=detail))

    report.note_size()
    if part.use is not None and not part.published and report.rows < part.use:
        note(f"the source has {report.rows:,} rows, the specification takes {part.use:,}")
    if report.missed:
        note(f"{report.missed:,} of the {report.chosen or 0:,} rows that the specification takes could not be read")
