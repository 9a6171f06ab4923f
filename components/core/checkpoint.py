"""Portable checkpoints: safetensors + JSON in one folder, independent of world size and ZeRO stage, never pickle.

state.json              format, identity, stream state, structure and the SHA-256 of every tensor file
method.safetensors      what the method carries (adapters, keys, statistics)
optimizer.safetensors   Adam moments by parameter name; only while a task is being learned
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.core.errors import CheckpointError
from components.core.files import write_text
from components.core.run_files import STATE_FILE

FORMAT = "littoral-checkpoint/1"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory: `state` is plain JSON, `tensors` maps file stem -> tensor name -> tensor."""

    state: dict[str, object]
    tensors: dict[str, dict[str, Tensor]]


def write_checkpoint(path: Path, state: Mapping[str, object], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a checkpoint into the empty folder `path`; `state.json` comes last, so an unfinished one has none."""
    files: dict[str, str] = {}
    for stem, group in tensors.items():
        file = path / f"{stem}.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}, file)
        files[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    text = json.dumps({"format": FORMAT, "files": files, **state}, indent=1, allow_nan=False)
    write_text(path / STATE_FILE, text + "\n")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder; raises `CheckpointError` naming what is missing, damaged or of another format."""
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} has no {STATE_FILE}; it is not a finished Littoral checkpoint.") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path / STATE_FILE} is not readable JSON ({error}).") from error
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {state.get('format')!r}, this version reads {FORMAT!r}.")
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, digest in state.pop("files").items():
        file = path / Path(name).name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise CheckpointError(f"{file} is missing or differs from the checksum in {STATE_FILE}; use another one.")
        try:
            tensors[file.stem] = load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is not a readable safetensors file ({error}).") from error
    return Checkpoint(state=state, tensors=tensors)
