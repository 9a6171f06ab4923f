"""Portable checkpoints: safetensors + JSON in one folder, independent of world size and ZeRO stage, never pickle.

state.json              format, identity, stream state, structure and the SHA-256 of every tensor file
method.safetensors      what the method carries (adapters, keys, statistics)
optimizer.safetensors   Adam moments by parameter name; only while a task is being learned
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.core.errors import CheckpointError
from components.core.files import file_sha256, storing, write_text
from components.core.reading import read_object, why
from components.core.run_files import STATE_FILE

FORMAT = "littoral-checkpoint/1"
ADVICE = "use another checkpoint"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory: `state` is plain JSON, `tensors` maps file stem -> tensor name -> tensor."""

    state: dict[str, object]
    tensors: dict[str, dict[str, Tensor]]
    folder: Path | None = None  # where it was read


def write_checkpoint(path: Path, state: Mapping[str, object], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a checkpoint into the empty folder `path`; `state.json` comes last, so an unfinished one has none."""
    files: dict[str, str] = {}
    for stem, group in tensors.items():
        file = path / f"{stem}.safetensors"
        with storing(file):
            _save({name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}, file)
        files[file.name] = file_sha256(file)
    text = json.dumps({"format": FORMAT, "files": files, **state}, indent=1, allow_nan=False)
    write_text(path / STATE_FILE, text + "\n")


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        save_file(tensors, file)
    except SafetensorError as error:  # it hides the system's error in its text
        number = re.search(r"\bos error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder; raises `CheckpointError` naming what is missing, damaged or of another format."""
    state, files = _checked(path)
    tensors: dict[str, dict[str, Tensor]] = {}
    for file in files:
        try:
            tensors[file.stem] = load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{file} is not a readable safetensors file ({why(error)}); {ADVICE}.") from error
    return Checkpoint(state=state, tensors=tensors, folder=path)


def checked_state(path: Path) -> dict[str, object]:
    """The `state` of a checkpoint whose files all have their checksums; raises `CheckpointError`. Reads no tensors."""
    return _checked(path)[0]


def _checked(path: Path) -> tuple[dict[str, object], list[Path]]:
    """The state and the tensor files, each with the checksum that it should have."""
    if not (path / STATE_FILE).is_file():
        raise CheckpointError(f"{path} has no {STATE_FILE}; it is not a finished Littoral checkpoint.")
    state = read_object(path / STATE_FILE, CheckpointError, ADVICE)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {state.get('format')!r:.80}, this version reads {FORMAT!r}.")
    digests = state.pop("files", None)
    if not isinstance(digests, dict):
        raise CheckpointError(f"{path / STATE_FILE} lists no files; {ADVICE}.")
    files: list[Path] = []
    for name, digest in digests.items():
        if len(name) > 255:
            raise CheckpointError(f"{path / STATE_FILE} names a file that cannot be, {name!r:.80}; {ADVICE}.")
        file = path / Path(name).name
        try:
            if not file.is_file() or file_sha256(file) != digest:
                raise CheckpointError(f"{file} is missing or differs from the checksum in {STATE_FILE}; {ADVICE}.")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read ({why(error)}); {ADVICE}.") from error
        files.append(file)
    return state, files
