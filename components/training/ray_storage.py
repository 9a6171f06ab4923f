"""The file system that Ray Train gets for its list of checkpoints: a store's, through what retries and writes whole.

Ray Train's controller would end a run for one request that a store has lost, and removes a checkpoint file by file.
Checkpoints themselves are written by `checkpointing.py`.
"""

from __future__ import annotations

import io
from typing import Any, cast

import pyarrow as pa
from pyarrow import fs

from components.core.location import Location, Place
from components.core.run_files import STATE_FILE


def ray_storage(storage: Place) -> tuple[str, fs.FileSystem]:
    """The folder of runs as Ray Train takes it: a path, and the file system that it is in."""
    if isinstance(storage, Location):
        return storage.path, fs.PyFileSystem(_Whole(storage))
    return str(storage), fs.LocalFileSystem()


class _Whole(fs.FileSystemHandler):
    """What Ray Train asks of a file system, as `Location` does it."""

    def __init__(self, storage: Location) -> None:
        self.storage = storage

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Whole) and other.storage == self.storage

    def __hash__(self) -> int:
        return hash(self.storage)

    def _at(self, path: str) -> Location:
        return self.storage.at(path)

    def get_type_name(self) -> str:
        return "littoral"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._at(path).facts() for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        try:
            return self._at(selector.base_dir).listing(recursive=selector.recursive)
        except FileNotFoundError:
            if selector.allow_not_found:
                return []
            raise

    def create_dir(self, path: str, recursive: bool) -> None:
        self._at(path).make_folder()

    def delete_dir(self, path: str) -> None:
        folder = self._at(path)
        (folder / STATE_FILE).unlink(missing_ok=True)  # first: what is half removed must not count
        folder.remove_folder()

    def delete_file(self, path: str) -> None:
        self._at(path).unlink()

    def open_input_stream(self, path: str) -> Any:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(io.BytesIO(self._at(path).read_bytes()), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(cast(Any, _File(self._at(path))), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise NotImplementedError

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def move(self, src: str, dest: str) -> None:
        raise NotImplementedError

    def copy_file(self, src: str, dest: str) -> None:
        raise NotImplementedError


class _File(io.BytesIO):
    """What is put when it is closed."""

    def __init__(self, target: Location) -> None:
        super().__init__()
        self._target = target

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self._target.put(content)
