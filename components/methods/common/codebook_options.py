"""How tasks are grouped, as options. Light on purpose (no torch): options import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Field = Literal["last_line", "last_line_to_colon", "whole"]
Aggregation = Literal["mean", "max"]
Allocation = Literal["file", "instance"]
OnMiss = Literal["last", "best"]


@dataclass(frozen=True, kw_only=True)
class CodebookOptions:
    """The method's options that grouping needs; `LciaConfig` explains them."""

    threshold: float
    aggregation: Aggregation
    field: Field
    max_strings: int
    allocation: Allocation
    on_miss: OnMiss
