"""Mean and spread of repeated measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MeanStd:
    """Mean and sample standard deviation (divisor n - 1) of n values; no deviation for a single one."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanStd:
        """Raises `ValueError` for no values."""
        if not values:
            raise ValueError("a spread needs at least one value")
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), deviation=deviation, count=len(values))

    def __format__(self, spec: str) -> str:
        values = [self.mean] if self.deviation is None else [self.mean, self.deviation]
        return " ± ".join(format(value, spec or ".1f") for value in values)

    def __str__(self) -> str:
        return format(self)
