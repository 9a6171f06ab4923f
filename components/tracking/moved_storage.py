"""An MLflow database that was moved or copied with its storage folder: its artifacts are looked for where they are now.

MLflow writes the absolute place of artifacts into every row, and would make the old folder again and write there.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from components.core.location import Place
from components.tracking.config import sqlite_path
from components.tracking.retry import StoreError

ARTIFACTS = "mlflow-artifacts"  # the folder in a storage
# What holds a place of this machine: MLflow's tables and columns.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("model_version_tags", "value"),
    ("logged_model_tags", "tag_value"),
)


def follow_moved_storage(uri: str, storage: Place) -> None:
    """Set the places in a sqlite store right where their storage has moved, and say so; other stores are left alone.

    An experiment's artifacts have moved when those of its runs lie below `storage` or beside the database, or when the
    storage they were in is gone. Raises `StoreError` for a file that is no database.
    """
    database = sqlite_path(uri)
    if database is None or not database.is_file():
        return
    here = [each.resolve() for each in (storage, database.parent) if isinstance(each, Path)]
    try:
        with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
            for old, new in list(_moves(connection, here)):
                _replace(connection, old.as_uri(), new.as_uri())
                logging.getLogger("littoral").warning(
                    "MLflow's artifacts were in %s; they are looked for and written in %s from now on.", old, new
                )
    except sqlite3.Error as error:
        raise StoreError(f"{database} cannot be read as MLflow's database ({error})", transient=False) from error


def _moves(connection: sqlite3.Connection, here: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Storage folders that the database names, and where each is now."""
    if not _has(connection, "experiments", "artifact_location") or not _has(connection, "runs", "artifact_uri"):
        return
    found = connection.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
    for experiment, location in found:
        parts = urlsplit(location or "")
        old = Path(unquote(parts.path))
        if parts.scheme != "file" or old.name != ARTIFACTS or old.parent in here:
            continue
        runs = connection.execute("SELECT run_uuid FROM runs WHERE experiment_id = ?", (experiment,)).fetchall()
        new = next((each for each in here if any((each / ARTIFACTS / run).is_dir() for (run,) in runs)), None)
        if new is not None or not old.parent.exists():
            yield old.parent, new or here[0]


def _replace(connection: sqlite3.Connection, old: str, new: str) -> None:
    """`old` at the beginning of a place, as a whole folder's name, becomes `new`."""
    for table, column in _PLACES:
        if _has(connection, table, column):
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old) + 1, old + "/"),
            )


def _has(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in connection.execute(f"PRAGMA table_info({table})"))
