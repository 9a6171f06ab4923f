"""The Parquet files of a split, wherever they are.

On this machine they are opened where they are. Of those in a store, pictures are read from a copy that has the
manifest's checksum (`core/copies.py`), other columns from such a copy or, where there is none, over the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.copies import NotAsListed, at_once, copied, copy_of
from components.core.errors import DataError, StorageError
from components.core.files import file_sha256
from components.core.location import Location, Place
from components.core.reading import why

PREPARE_AGAIN = "prepare the stream again"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of a split."""

    file: str
    rows: int
    bytes: int
    sha256: str


def whole_shard(folder: Place, shard: Shard) -> pq.ParquetFile:
    """A shard to read pictures from; raises `DataError`, and `StorageError` where its store does not answer."""
    path = folder / shard.file
    try:
        near = copied(path, shard.sha256)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing though its manifest lists it; {PREPARE_AGAIN}.") from error
    except NotAsListed as error:
        raise DataError(f"{path} differs from its manifest's checksum; {PREPARE_AGAIN}.") from error
    with parquet(path):
        return pq.ParquetFile(near)


def shard_without_pictures(folder: Place, shard: Shard) -> pq.ParquetFile:
    """A shard to read other columns of; raises `DataError`, and `StorageError` where its store does not answer."""
    path = folder / shard.file
    with parquet(path):
        near = copy_of(path, shard.sha256)
        return pq.ParquetFile(path.open(), pre_buffer=True) if near is None else pq.ParquetFile(near)


def group_rows_of(folder: Place, shards: Sequence[Shard]) -> tuple[tuple[int, ...], ...]:
    """Rows of each row group of each shard; raises as `shard_without_pictures`."""

    def read(shard: Shard) -> tuple[int, ...]:
        found = shard_without_pictures(folder, shard).metadata
        return tuple(found.row_group(group).num_rows for group in range(found.num_row_groups))

    if isinstance(folder, Path):
        return tuple(map(read, shards))
    return tuple(at_once(read, shards))


def batches(file: pq.ParquetFile, path: Place, size: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The validated batches of a shard; raises `DataError`."""
    with parquet(path):
        for batch in file.iter_batches(batch_size=size, columns=list(columns)):
            batch.validate(full=True)
            yield batch


@contextmanager
def parquet(path: Place) -> Iterator[None]:
    """Turn what reading a shard raises into `DataError`."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        if isinstance(path, Location):  # pyarrow tells of a lost connection and of a damaged page in the same way
            raise DataError(
                f"{path} cannot be read ({why(error)}); give the same command again, and if it says this again, "
                f"{PREPARE_AGAIN}."
            ) from error
        raise DataError(f"{path} is not a whole Parquet file ({why(error)}); {PREPARE_AGAIN}.") from error


def verify_shards(folder: Place, shards: Iterable[Shard]) -> None:
    """Compare shards with what their manifest says; raises `DataError` naming the first that differs.

    Those in a store are only compared by length: their content is, too, where it is read.
    """
    if isinstance(folder, Location):
        _verify_lengths(folder, [*shards])
        return
    for shard in shards:
        path = folder / shard.file
        if not path.is_file():
            raise DataError(f"{path} is missing though its manifest lists it; {PREPARE_AGAIN}.")
        if file_sha256(path) != shard.sha256:
            raise DataError(f"{path} differs from its manifest's checksum; {PREPARE_AGAIN}.")
        with parquet(path):
            rows = pq.ParquetFile(path).metadata.num_rows
        if rows != shard.rows:
            raise DataError(f"{path} has {rows} rows, its manifest says {shard.rows}; {PREPARE_AGAIN}.")


def _verify_lengths(folder: Location, shards: Sequence[Shard]) -> None:
    """One listing tells most; what it lacks, or has otherwise, is asked for by name, because it may lag behind."""
    listed: Mapping[str, int | None] = {}
    with suppress(FileNotFoundError):
        listed = {Path(info.path).name: info.size for info in folder.listing()}
    for shard in shards:
        if listed.get(shard.file) == shard.bytes:
            continue
        path = folder / shard.file
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing though its manifest lists it; {PREPARE_AGAIN}.") from error
        if size != shard.bytes:
            raise DataError(f"{path} has {size} bytes, its manifest says {shard.bytes}; {PREPARE_AGAIN}.")
