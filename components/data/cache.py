"""Splits kept on disk: written at the first use, found at the next, never seen half-written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from components.core.errors import DataError
from components.core.files import whole_folder
from components.data.rows import Row, Split, open_split, verify_split, write_split

SPLIT_MARK = "manifest.json"  # the file that a whole split has


def write_once(folder: Path, mark: str, write: Callable[[Path], object]) -> bool:
    """Let `write` fill `folder` unless it already has the file `mark`; returns whether it was written.

    The folder appears whole or not at all. When another process is faster, its equal folder stays. Raises `DataError`.
    """
    if (folder / mark).is_file():
        return False
    try:
        with whole_folder(folder) as partial:
            write(partial)
    except OSError as error:
        if not (folder / mark).is_file():
            raise DataError(f"{folder} cannot be written ({error}); give another --stream.data-dir.") from error
    return True


def kept_split(path: Path, write: Callable[[Path], object]) -> Split:
    """The split at `path`, written by `write` at the first use; files of an earlier use are compared with checksums."""
    if write_once(path, SPLIT_MARK, write):
        return open_split(path)
    split = open_split(path)
    try:
        verify_split(split)
    except DataError as error:
        raise DataError(f"{error} Delete {path} to have it written again.") from error
    return split


def kept_subset(rows: Iterable[Row], split: Split, path: Path, facts: dict[str, object]) -> Split:
    """Some `rows` of `split` as a separate split at `path`, written at the first use; `facts` go to its card."""

    def write(folder: Path) -> None:
        write_split(rows, folder, task=split.task, split=split.split, card={**split.card, **facts})

    return kept_split(path, write)


def first_rows(root: Path, split: Split, limit: int | None) -> Split:
    """The first `limit` rows of `split`, kept below `root` under the digest of the whole split; all without a limit."""
    if limit is None or limit >= split.num_rows:
        return split
    path = root / f"{split.digest[:16]}-{limit}"
    return kept_subset(islice(split.rows(), limit), split, path, {"first_rows_of": split.digest, "rows": limit})
