"""Sides of a comparison that take turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Side = TypeVar("Side", bound=Hashable)
Found = TypeVar("Found")


def timed(run: Callable[[], Found]) -> tuple[float, Found]:
    """CPU seconds of this process, and what `run` gave."""
    started = time.process_time()
    found = run()
    return time.process_time() - started, found


def in_turns(
    sides: Mapping[Side, Callable[[], Found]], repeats: int
) -> tuple[dict[Side, list[float]], dict[Side, Found]]:
    """CPU seconds of each side, by repeat, and what each gave last; every other repeat is in the opposite order."""
    times: dict[Side, list[float]] = {side: [] for side in sides}
    found: dict[Side, Found] = {}
    for repeat in range(repeats):
        for side in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
            spent, found[side] = timed(sides[side])
            times[side].append(spent)
    return times, found
