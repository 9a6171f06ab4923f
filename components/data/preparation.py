"""From sources to a prepared folder: the steps that a user's files, published streams and published suites share.

`prepare` writes beside the output folder (in a store, into it), asks whether too much was lost, and only then lets the
result take the output's place, with its report inside. When the preparation is refused, the report is put beside the
output folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from components.core.errors import ConfigError, DataError, StorageError
from components.core.files import whole_folder
from components.core.location import Location, Place
from components.core.lock import Held, locked, waits
from components.core.run_files import LOCK_FILE
from components.data.formats.pictures import followed
from components.data.output import made_in_store, require_folder, require_ours
from components.data.quality.report import FileReport, ImportReport, refused_report_path

ALLOWED_LOSS = 0.01  # of the rows of a published split: releases have a few broken rows of their own


class _Refused(Exception):
    """Leaves the unfinished folder without a result, with the report that says why."""

    def __init__(self, report: ImportReport) -> None:
        super().__init__(report.refused)
        self.report = report


def prepare(
    name: str,
    out_dir: Place,
    write: Callable[[Place], Iterable[FileReport]],
    finish: Callable[[Place], None],
    refusal: Callable[[Sequence[FileReport]], str | None],
    *,
    unfinished: Callable[[Place], AbstractContextManager[Place]] | None = None,
    spec: str | None = None,
    leaks: tuple[str, ...] | None = None,
) -> ImportReport:
    """Write the stream or suite `name` to `out_dir`, and its report.

    `write` puts the splits into a folder and reports on every source; `refusal` judges these reports: a sentence
    without its period, or None; `finish` adds what makes the folder a prepared one. Refused: `out_dir` stays as it was
    and the report is `<out_dir>.report.json`; otherwise it is `out_dir`/report.json. `unfinished` is `whole_or_nothing`
    (the default) or `whole_or_later`; `spec` and `leaks` go into the report. Raises `DataError` for a folder that
    cannot be written and `ConfigError` for one that may not be replaced.
    """
    followed.cache_clear()  # links may have changed since the last preparation of this process
    try:
        with (unfinished or whole_or_nothing)(out_dir) as folder:
            files = tuple(write(folder))
            refused = refusal(files)
            report = ImportReport(
                stream=name,
                out_dir=out_dir,
                files=files,
                refused=refused,
                spec=spec,
                leaks=leaks if refused is None else None,
            )
            if refused is not None:
                raise _Refused(report)
            finish(folder)
            report.write(folder / "report.json")
            return report
    except _Refused as end:
        end.report.write(refused_report_path(out_dir))
        return end.report


def check_max_broken(max_broken: float) -> None:
    """Raises `ConfigError` for what is not a share below 1."""
    if not 0 <= max_broken < 1:
        raise ConfigError(f"max_broken is the share of broken rows to leave out, 0 to below 1; {max_broken} was given.")


def release_root(root: Path, holds: str) -> Path:
    """`root` as a full path; raises `ConfigError` when it is not the folder that `holds` the release or releases."""
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise ConfigError(f"--root {root} is not a folder; give the folder that holds {holds}.")
    return root


@contextmanager
def whole_or_nothing(out_dir: Place) -> Iterator[Place]:
    """A folder whose content takes the place of `out_dir` when the block succeeds and is removed when it fails.

    An existing `out_dir` is replaced only when it is empty or a prepared stream or suite; otherwise `ConfigError`.
    """
    if isinstance(out_dir, Location):
        with sole_preparer(out_dir), made_in_store(out_dir, keep=False) as partial:
            yield partial
        return
    with _replacing(out_dir) as (out_dir, set_aside), whole_folder(out_dir) as partial:
        yield partial
        set_aside()


@contextmanager
def whole_or_later(out_dir: Place) -> Iterator[Place]:
    """Like `whole_or_nothing`, but after a failure the next call finds the folder as it was left."""
    if isinstance(out_dir, Location):
        with sole_preparer(out_dir), made_in_store(out_dir, keep=True) as partial:
            yield partial
        return
    with _replacing(out_dir) as (out_dir, set_aside):
        partial = out_dir.with_name(f".{out_dir.name}.unfinished")
        partial.mkdir(parents=True, exist_ok=True)
        (partial / ".lock").unlink(missing_ok=True)  # of an earlier version
        yield partial
        set_aside()
        partial.rename(out_dir)


@contextmanager
def sole_preparer(out_dir: Place, *, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep other processes from preparing `out_dir` while open; `wait` and errors are those of core/lock.py."""
    if isinstance(out_dir, Path):
        out_dir = out_dir.absolute()
        lock: Place = out_dir.with_name(f".{out_dir.name}.lock")
    else:
        require_folder(out_dir)
        lock = out_dir / LOCK_FILE
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, keep_waiting=waits(wait, str(out_dir))))
        except Held as error:
            raise ConfigError(
                f"{out_dir} is being prepared by {error}; wait for it (--wait does that), or give another --out."
            ) from None
        except OSError as error:
            if isinstance(out_dir, Location) and isinstance(error, StorageError):
                raise
            raise DataError(f"{out_dir} cannot be written ({error}); give a folder you may write to.") from error
        yield


@contextmanager
def _replacing(out_dir: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The full path of `out_dir`, and what moves its former content out of the way, to be called last.

    That content is deleted only after the new one is in place, so that a failure in between loses neither.
    """
    out_dir = out_dir.absolute()
    require_ours(out_dir)
    former = out_dir.with_name(f".{out_dir.name}.old")

    def set_aside() -> None:
        if out_dir.exists():
            out_dir.rename(former)

    try:
        with sole_preparer(out_dir):
            _put_back(former, out_dir)  # a killed process may have left it aside
            try:
                yield out_dir, set_aside
            finally:
                _put_back(former, out_dir)
    except OSError as error:
        raise DataError(f"{out_dir} cannot be written ({error}); give a folder you may write to.") from error


def _put_back(former: Path, out_dir: Path) -> None:
    """Give a folder that was set aside its place again, or delete it where there is a new one."""
    if former.is_dir() and not out_dir.exists():
        former.rename(out_dir)
    shutil.rmtree(former, ignore_errors=True)


def own_refusal(files: Sequence[FileReport], *, max_broken: float) -> str | None:
    """Why nothing may be written, or None: a file that breaks off, or the one with the largest share of broken rows."""
    for file in files:
        if file.cut:
            last = next(problem for problem in reversed(file.problems) if problem.file == file.cut)
            return f"{last}; how many rows follow is not known, so repair it first"
    worst = max(files, key=lambda report: report.broken_share)
    if worst.kept and worst.broken_share <= max_broken:
        return None
    first = next(problem for problem in worst.problems if problem.kind in worst.counts)
    if not worst.rows:
        return str(first).rstrip(".")
    row = f"row {first.row}: " if first.row is not None else ""
    place = row if first.file == worst.file else f"{first.file} {row}"
    broken = f"{worst.rows - worst.kept} of {worst.rows} rows of {worst.file} are broken"
    return f"{broken} ({worst.broken_share:.1%}, allowed {max_broken:.1%}); the first: {place}{first.detail}"


def release_refusal(files: Sequence[FileReport], *, max_broken: float, strict: bool) -> str | None:
    """Why nothing of a release may be written, in one sentence without its period; None when it may be.

    A split refuses without rows, without any picture where its source has some, and when it loses a larger share of
    its rows than `max_broken`; `strict` refuses everything that was reported.
    """
    for file in files:
        first = str(file.problems[0]).rstrip(".") if file.problems else "the source is empty"
        if not file.kept:
            return f"no row of {file.name} could be read; {first}"
        if file.pictured and not file.with_image:
            return f"no row of {file.name} has its picture, {file.lost:,} rows would be left out; the first: {first}"
    odd = [file for file in files if file.problems]
    if strict and odd:
        found = sum(file.found.total() for file in odd)
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
