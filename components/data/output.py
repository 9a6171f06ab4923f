"""Where prepared data is written: what may be replaced there, and how a folder in a store gets its content.

In a store the content is made in `OUT/.unfinished` and then moved within the store: what is there before loses its
marker first, and the new marker comes last. So readers find the old data, nothing or the new data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from components.core.errors import ConfigError
from components.core.files import remove_folder
from components.core.location import Location, Place
from components.core.run_files import LOCK_FILE
from components.core.tickets import require_not_lost
from components.data.prepared import STREAM_FILE, open_prepared
from components.data.rows import MANIFEST, Split
from components.data.suite import SUITE_FILE, open_suite

UNFINISHED = ".unfinished"
MARKERS = (STREAM_FILE, SUITE_FILE)
REPORT = "report.json"


def require_folder(out: Location) -> None:
    """Raise `ConfigError` for a whole bucket."""
    if not out.parent.path:
        raise ConfigError(f"{out} is all of a store; give --out a folder in it, such as {out}/prepared.")


def require_ours(out: Place) -> None:
    """Raise `ConfigError` where `out` is something else than an empty folder, prepared data or what is left of it."""
    if out.is_file():
        raise ConfigError(f"{out} is a file; give --out a new or empty folder.")
    if not out.is_dir() or any((out / name).is_file() for name in MARKERS):
        return
    names = {each.name for each in _entries(out)}
    if isinstance(out, Location):
        names = set() if UNFINISHED in names else names - {LOCK_FILE}
    if names:
        raise ConfigError(f"{out} exists and is not a prepared stream; give --out a new or empty folder.")


@contextmanager
def made_in_store(out: Location, *, keep: bool) -> Iterator[Location]:
    """A folder whose content becomes that of `out` when the block succeeds. After a failure it stays only with `keep`.

    The caller has the lock of `out`. Raises `ConfigError`, and `StorageError` where the store does not answer.
    """
    require_ours(out)
    made = out / UNFINISHED
    if not keep:
        made.remove_folder()
    try:
        yield made
    except BaseException:
        if not keep:
            remove_folder(made)
        raise
    _replace(out, made)  # should this fail in its middle, what is left of `made` says whose folder this is
    remove_folder(made)


def _replace(out: Location, made: Location) -> None:
    """Remove what `out` holds, its marker first; move what the markers of `made` list, its own marker last."""
    names = _listed(made)
    require_not_lost(out)
    for marker in MARKERS:
        (out / marker).unlink(missing_ok=True)
    for each in _entries(out):
        if each.name not in (UNFINISHED, LOCK_FILE):
            _remove(each)
    for name in names:
        require_not_lost(out)
        (made / name).move_to(out / name)


def _entries(out: Place) -> list[Place]:
    try:
        return [*out.iterdir()]
    except FileNotFoundError:  # a listing that lags behind
        return []


def _remove(place: Place) -> None:
    if place.is_file():
        place.unlink(missing_ok=True)
    else:
        remove_folder(place)


def _listed(made: Location) -> list[str]:
    """What is moved, by name: files that no listing has told, since that may lag behind."""
    if (made / STREAM_FILE).is_file():
        splits, marker = open_prepared(made).splits, STREAM_FILE
    else:
        splits, marker = [open_suite(made).test], SUITE_FILE
    report = [REPORT] if (made / REPORT).is_file() else []
    return [*(name for split in splits for name in _files_of(split, made)), *report, marker]


def _files_of(split: Split, made: Location) -> list[str]:
    assert isinstance(split.path, Location)
    folder = split.path.path.removeprefix(f"{made.path}/")
    return [f"{folder}/{name}" for name in (*(shard.file for shard in split.shards), MANIFEST)]
