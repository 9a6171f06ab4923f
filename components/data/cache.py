"""Splits kept on disk: written at the first use, found at the next, never seen half-written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from components.core.errors import DataError, StorageError
from components.core.files import whole_folder
from components.core.location import Location, Place
from components.data.rows import MANIFEST, Row, Split, open_split, verify_split, write_split


def write_once(folder: Place, mark: str, write: Callable[[Path], object]) -> bool:
    """Let `write` fill `folder` unless it already has the file `mark`; returns whether it was written.

    The folder appears whole or not at all. When another process is faster, its equal folder stays. Raises `DataError`.
    """
    if (folder / mark).is_file():
        return False
    try:
        with whole_folder(folder, last=mark) as partial:
            write(partial)
    except OSError as error:
        if isinstance(folder, Location) and isinstance(error, StorageError):
            raise
        if not (folder / mark).is_file():
            raise DataError(f"{folder} cannot be written ({error}); give another --stream.data-dir.") from error
    return True


@contextmanager
def made_here(folder: Place) -> Iterator[Path]:
    """Where on this machine a split is to be written that lies in `folder` at the end."""
    if isinstance(folder, Path):
        yield folder
    else:
        with whole_folder(folder, replace=True, last=MANIFEST) as made:
            yield made


def kept_split(path: Place, write: Callable[[Path], object]) -> Split:
    """The split at `path`, written by `write` at the first use; files of an earlier use are compared with checksums."""
    if write_once(path, MANIFEST, write):
        return open_split(path)
    split = open_split(path)
    try:
        verify_split(split)
    except DataError as error:
        raise DataError(f"{error} Delete {path} to have it written again.") from error
    return split


def kept_subset(rows: Iterable[Row], split: Split, path: Place, facts: dict[str, object]) -> Split:
    """Some `rows` of `split` as a separate split at `path`, written at the first use; `facts` go to its card."""

    def write(folder: Path) -> None:
        write_split(rows, folder, task=split.task, split=split.split, card={**split.card, **facts})

    return kept_split(path, write)


def first_rows(root: Place, split: Split, limit: int | None) -> Split:
    """The first `limit` rows of `split`, kept below `root` under the digest of the whole split; all without a limit."""
    if limit is None or limit >= split.num_rows:
        return split
    path = root / f"{split.digest[:16]}-{limit}"
    return kept_subset(islice(split.rows(), limit), split, path, {"first_rows_of": split.digest, "rows": limit})
