"""The bits of the method in a checkpoint, read by nothing of ours: JSON and the layout of safetensors files.

Which tensors lie in which file depends on which checkpoints there were before, so files are not compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def method_bits(checkpoint: Path) -> dict[str, str]:
    """Digest of type, shape and bytes of every tensor, by name. `checkpoint` is in `checkpoints/` of its run."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    if (checkpoint / "method.safetensors").is_file():
        found.update(_tensors(checkpoint / "method.safetensors"))
    for digest, left_out in state.get("shared", {}).get("method", {}).items():
        for name, bits in _tensors(checkpoint.parent.parent / "tensors" / f"{digest}.safetensors"):
            if name not in left_out:
                assert name not in found, name
                found[name] = bits
    return found


def learned_bits(run_dir: Path) -> dict[str, dict[str, str]]:
    """The same of every checkpoint that a run keeps, by its name."""
    return {path.name: method_bits(path) for path in sorted((run_dir / "checkpoints").glob("[!.]*"))}


def _tensors(file: Path) -> Iterator[tuple[str, str]]:
    content = file.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:begin])
    for name, one in header.items():
        if name != "__metadata__":
            first, last = one["data_offsets"]
            kind = f"{one['dtype']} {one['shape']} ".encode()
            yield name, hashlib.sha256(kind + content[begin + first : begin + last]).hexdigest()
