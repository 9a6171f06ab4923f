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

from components.core.checkpoint_files import ADVICE, FORMAT, checked
from components.core.errors import CheckpointError
from components.core.files import file_sha256, storing, write_text
from components.core.reading import why
from components.core.run_files import STATE_FILE


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
    state, files = checked(path)
    tensors: dict[str, dict[str, Tensor]] = {}
    for file in files:
        try:
            tensors[file.stem] = load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{file} is not a readable safetensors file ({why(error)}); {ADVICE}.") from error
    return Checkpoint(state=state, tensors=tensors, folder=path)
