"""Rows named in messages: by split, number and source; many of them in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from components.core.files import write_text
from components.core.machine import cache_dir
from components.data.rows import Split

SHOWN = 5  # rows named in a message; more are listed in a file


def split_name(split: Split) -> str:
    """`chartqa train`: how messages and plans name a split."""
    return f"{split.task} {split.split}"


def named_rows(split: Split, found: Mapping[int, str]) -> list[str]:
    """A line for each of these rows, counted from 0, with what was found of it."""
    if not found:
        return []
    sources = [str(source) for source in split.column("source")]
    return [f"{split_name(split)} row {row + 1} ({sources[row]}): {what}" for row, what in found.items()]


def shown_rows(named: Sequence[str], kind: str) -> str:
    """The first lines; where there are more, all of them are in a file whose name begins with `kind`."""
    text = "; ".join(named[:SHOWN])
    if len(named) <= SHOWN:
        return text
    path = cache_dir() / "lengths" / f"{kind}-{hashlib.sha256(str(named).encode()).hexdigest()[:16]}.txt"
    write_text(path, "\n".join(named) + "\n")
    return f"{text}; and {len(named) - SHOWN} more, all listed in {path}"
