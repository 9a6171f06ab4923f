"""A new sqlite store at once: MLflow makes one by all migrations it ever had, so the first that it makes is kept."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from components.core.errors import StorageError
from components.core.files import whole_file
from components.core.machine import cache_dir
from components.tracking.config import sqlite_path

_NO_MATTER = (OSError, StorageError, sqlite3.Error)  # MLflow makes its tables itself, which takes seconds


def kept_database() -> Path:
    """Where this machine keeps an empty store of the installed MLflow."""
    from mlflow import __version__

    return cache_dir() / "mlflow" / f"{__version__}.db"


@contextmanager
def new_database(uri: str) -> Iterator[None]:
    """A scope in which MLflow opens the store; a new file begins as a copy of the empty one, or is kept as that."""
    database = sqlite_path(uri)
    if database is None or database.exists() or _copied(kept_database(), database):
        yield
        return
    yield
    with suppress(*_NO_MATTER), whole_file(kept_database()) as partial, closing(sqlite3.connect(partial)) as kept:
        with closing(sqlite3.connect(database)) as made:
            made.backup(kept)
        kept.execute("DELETE FROM experiments")  # the default one, which names the folder of this process
        kept.commit()


def _copied(kept: Path, database: Path) -> bool:
    """Whether `database` is a copy of `kept` now: false where there is none, or a damaged one."""
    with suppress(*_NO_MATTER), whole_file(database) as partial:
        shutil.copyfile(kept, partial)
        with closing(sqlite3.connect(partial)) as connection:
            if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                raise sqlite3.DatabaseError("damaged")
        return True
    return False
