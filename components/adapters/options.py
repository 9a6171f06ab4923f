"""Options of adapters. Light on purpose (no torch): methods' options import it."""

from __future__ import annotations

import re
from typing import Literal

ContextRange = Literal["sigmoid", "clamp"]
Space = Literal["projected", "hidden"]
Penalty = Literal["mean_square", "first_release", "paper"]


def parse_layers(text: str) -> range:
    """ "2-4" -> layers 2, 3 and 4 (0-based); raises `ValueError`."""
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise ValueError(f"{text!r} is not FIRST-LAST with 0-based layer numbers, such as 2-4")
    return range(int(match[1]), int(match[2]) + 1)
