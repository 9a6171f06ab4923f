"""Portable checkpoints: safetensors + JSON in one folder, independent of world size and ZeRO stage, never pickle.

state.json              format, identity, stream state, structure, the SHA-256 of every tensor file, and which tensors
                        are in files that the checkpoints of its run share (`tensor_store.py`)
method.safetensors      what the method carries (adapters, keys, statistics), unless its run shares it
optimizer.safetensors   Adam moments by parameter name; only while a task is being learned
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.core.checkpoint_files import ADVICE, FILES, SHARED, SHARING, WHOLE, Shared, checked, listed
from components.core.copies import NotAsListed, copied
from components.core.errors import CheckpointError, StorageError
from components.core.files import file_sha256, storing, write_text
from components.core.location import Location, Place, fetched
from components.core.reading import why
from components.core.run_files import STATE_FILE


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a checkpoint has from one of the files that its run's checkpoints share."""

    stem: str
    digest: str
    size: int  # bytes of the file
    names: tuple[str, ...]  # all that is in the file
    left_out: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory: `state` is plain JSON, `tensors` maps file stem -> tensor name -> tensor."""

    state: dict[str, object]
    tensors: dict[str, dict[str, Tensor]]
    folder: Place | None = None  # where it was read
    taken: list[Taken] = field(default_factory=list[Taken])


def write_checkpoint(
    path: Path,
    state: Mapping[str, object],
    tensors: Mapping[str, Mapping[str, Tensor]],
    shared: Shared | None = None,
) -> None:
    """Write a checkpoint into the empty folder `path`; `state.json` comes last, so an unfinished one has none.

    `shared`: what it takes from files of its run, which are on disk by then. Without, it is whole by itself.
    """
    files: dict[str, str] = {}
    for stem, group in tensors.items():
        file = path / f"{stem}.safetensors"
        with storing(file):
            save_tensors(group, file)
        files[file.name] = file_sha256(file)
    head: dict[str, object] = {"format": WHOLE if shared is None else SHARING, FILES: files}
    if shared is not None:
        head[SHARED] = shared
    text = json.dumps({**head, **state, **head}, indent=1, allow_nan=False)
    write_text(path / STATE_FILE, text + "\n")


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file; raises `OSError` for trouble with the storage."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:  # it hides the system's error in its text
        number = re.search(r"\bos error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def read_checkpoint(path: Place, run_dir: Place | None = None, *, by_copies: bool = False) -> Checkpoint:
    """Read a checkpoint folder; raises `CheckpointError` naming what is missing, damaged or of another format.

    `run_dir`: the folder of its run, where the place of `path` does not tell it (`checkpoint_files.listed`).
    `by_copies`: from a store, files come by way of this machine's copies (`copies.py`), each fetched once.
    """
    by_copies = by_copies and isinstance(path, Location)
    files = listed(path, run_dir) if by_copies else checked(path, run_dir=run_dir)
    tensors: dict[str, dict[str, Tensor]] = {stem: {} for stem in files.shared}
    for file, digest in files.own.items():
        with _readable(file), _near(file, digest, by_copies=by_copies) as near:
            tensors[file.stem] = load_file(near)
    taken: list[Taken] = []
    for stem, digests in files.shared.items():
        for digest, left_out in digests.items():
            file = files.in_run(digest)
            with _readable(file), _near(file, digest, by_copies=by_copies) as near:
                taken.append(_take(near, stem, digest, frozenset(left_out), tensors[stem]))
    return Checkpoint(state=files.state, tensors=tensors, folder=path, taken=taken)


@contextmanager
def _near(file: Place, digest: object, *, by_copies: bool) -> Iterator[Path]:
    """A file of a checkpoint, on this machine."""
    if not by_copies:
        with fetched(file) as near:
            yield near
        return
    try:
        near = copied(file, str(digest))
    except (FileNotFoundError, NotAsListed) as error:
        raise CheckpointError(f"{file} is missing or differs from its checksum; {ADVICE}.") from error
    yield near


def _take(near: Path, stem: str, digest: str, left_out: frozenset[str], tensors: dict[str, Tensor]) -> Taken:
    """Put into `tensors` what the checkpoint takes from one of its run's files."""
    with safe_open(near, framework="pt") as opened:
        names = tuple(opened.keys())
        wanted = [name for name in names if name not in left_out]
        if twice := tensors.keys() & set(wanted):
            raise ValueError(f"{min(twice)} is also in another one")
        # Copies, because what it hands out is the file itself mapped into memory, and a file that is cut while a run
        # remembers its tensors would end the process.
        tensors.update({name: opened.get_tensor(name).clone() for name in wanted})
    return Taken(stem=stem, digest=digest, size=near.stat().st_size, names=names, left_out=left_out)


@contextmanager
def _readable(file: Place) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file ({why(error)}); {ADVICE}.") from error
