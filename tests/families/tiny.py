"""Tiny checkpoints of every supported model type on disk: real configuration classes, random weights, all files.

A directory holds what the hub's does: config.json, generation_config.json, weights, tokenizer, chat template,
preprocessor_config.json and, where the model has a processor, processor_config.json.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import gemmas, llavas, qwens, texts, tiled  # noqa: F401  (they register their writers)
from tests.families.writing import WRITERS

NAMES = tuple(WRITERS)
TEXT_ONLY = ("llama", "qwen3")
USUAL = ("llava", "qwen2_5_vl", "smolvlm", "llama")


def params() -> list[object]:
    """All names; those beside `USUAL` are marked `long`."""
    return [name if name in USUAL else pytest.param(name, marks=pytest.mark.long) for name in NAMES]


def write(name: str, folder: Path) -> Path:
    """Write the tiny checkpoint called `name` to `folder`."""
    WRITERS[name](folder)
    return folder
