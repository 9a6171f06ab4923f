"""What a tracker sends: points of metrics, and how often the whole matrix."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

MOST_WHOLE = 12  # about as often is all of the matrix written, so that T tasks cost T^2 and not T^3


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of a metric."""

    key: str
    value: float
    step: int
    timestamp_ms: int


def writes_whole(learned: int, num_tasks: int) -> bool:
    """Whether the whole matrix is drawn and written after `learned` of `num_tasks` tasks.

    Up to `MOST_WHOLE` tasks it is after every one; of more, after every k-th, k = num_tasks / MOST_WHOLE rounded up,
    and after the last. A matrix has T^2 cells and is written a bounded number of times, so all writing is about T^2.
    """
    return learned >= num_tasks or learned % max(1, math.ceil(num_tasks / MOST_WHOLE)) == 0


def points(values: Mapping[str, float], *, step: int, at_ms: int | None = None) -> list[Point]:
    """Points of now, or of `at_ms`. Finite values only: SQL stores change NaN and infinity into other numbers."""
    now = int(time.time() * 1000) if at_ms is None else at_ms
    finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
    return [Point(key=key, value=value, step=step, timestamp_ms=now) for key, value in finite.items()]
