"""A bar is what a figure may be at most, or must be at least; `run.py` collects them from what the scripts print."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

Limit = Literal["at most", "at least"]
UNMEASURED = "NOT MEASURED"
_LINE = re.compile(
    r"BAR \| (?P<name>[^|]+) \| (?P<value>[\d.e+-]+)(?P<spread> \[[^|]*\])? \|"
    r" (?P<limit>at most|at least) (?P<bar>[\d.]+) \| (?:holds|missed)(?:: (?P<reason>.*))?"
)


@dataclass(frozen=True)
class Bar:
    """A figure beside its bar; `reason` says why it is missed, as far as that is known."""

    name: str
    value: float
    limit: Limit
    bar: float
    spread: str = ""
    reason: str = ""

    @property
    def holds(self) -> bool:
        return self.value <= self.bar if self.limit == "at most" else self.value >= self.bar

    def __str__(self) -> str:
        verdict = "holds" if self.holds else f"missed: {self.reason or 'no reason is known yet'}"
        return f"BAR | {self.name} | {self.value:.3g}{self.spread} | {self.limit} {self.bar:g} | {verdict}"

    @classmethod
    def read(cls, line: str) -> Self | None:
        """The bar that `line` shows, if it shows one."""
        found = _LINE.fullmatch(line.strip())
        if found is None:
            return None
        return cls(
            name=found["name"].strip(),
            value=float(found["value"]),
            limit="at most" if found["limit"] == "at most" else "at least",
            bar=float(found["bar"]),
            spread=found["spread"] or "",
            reason=found["reason"] or "",
        )


def print_bar(name: str, found: float | Sequence[float], limit: Limit, bar: float, reason: str = "") -> None:
    """Print a figure, or the median of several with the smallest and the largest, beside its bar."""
    values = [found] if isinstance(found, int | float) else list(found)
    spread = f" [{min(values):.3g}, {max(values):.3g}]" if len(values) > 1 else ""
    print(Bar(name, statistics.median(values), limit, bar, spread, reason), flush=True)


def print_unmeasured(names: Sequence[str], reason: str) -> None:
    """Print bars that have no figure on this machine, and why."""
    for name in names:
        print(f"{UNMEASURED} | {name} | {reason}", flush=True)
