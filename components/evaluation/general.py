"""General ability before, during and after a stream: what suites scored, and how much of it was retained.

With R[t, i] the score (0..100) on suite i of M after learning t tasks, t = 0 before any training:

    difference   R[t, i] - R[0, i]               averaged over suites this is TRACE's General Ability Delta (2310.06762)
    retained     R[t, i] / R[0, i]               the share that is left; without meaning, and left out, for R[0, i] = 0
    hmean        2 A R / (A + R)                 A the stream's final average, R the mean of R[T, i]: one figure for
                                                 learning and keeping at once, as KORE (2510.19316) combines adaptation
                                                 and retention

All suites weigh alike. A retained share says little where R[0, i] is near chance: a model that only guesses
retains all of it. Suites are never trained on, so anything above 1 is transfer or noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, cast

from components.core.errors import DataError
from components.core.files import write_text
from components.core.location import Place
from components.core.reading import ODD, read_object, understood

if TYPE_CHECKING:
    from components.evaluation.suite_figures import SuiteFigures

GENERAL_FILE = "general.json"
FORMAT = "littoral-general/1"

LABELS = {
    "mean_before": "General ability before",
    "mean_after": "General ability after",
    "mean_difference": "Difference (general ability delta)",
    "mean_retained": "Retained share",
    "hmean": "Harmonic mean with the final average",
}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One suite against its own score before the stream."""

    before: float
    after: float

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def retained(self) -> float | None:
        """After / before; None where the score before was 0."""
        return self.after / self.before if self.before > 0 else None


@dataclass(frozen=True, kw_only=True)
class GeneralScores:
    """Figures by the number of tasks learned and by suite; `after` names the task learned last ("zero-shot" for 0)."""

    after: Mapping[int, str] = field(default_factory=dict)
    figures: Mapping[int, Mapping[str, SuiteFigures]] = field(default_factory=dict)

    def has(self, learned: int, suite: str) -> bool:
        """Whether a suite was scored after so many tasks."""
        return suite in self.figures.get(learned, {})

    def plus(self, learned: int, after: str, suite: str, figures: SuiteFigures) -> GeneralScores:
        """The same with one more result."""
        row = {**self.figures.get(learned, {}), suite: dict(figures)}
        return GeneralScores(after={**self.after, learned: after}, figures={**self.figures, learned: row})

    def kept(self, learned: int | None = None) -> dict[str, Kept]:
        """Every suite that was scored before and after so many tasks (None: the last row); empty without both rows."""
        last = max(self.figures, default=0) if learned is None else learned
        if last == 0:
            return {}
        before, after = self.figures.get(0, {}), self.figures.get(last, {})
        return {
            suite: Kept(before=before[suite]["score"], after=after[suite]["score"])
            for suite in before
            if suite in after
        }

    def summary(self, final_average: float | None = None, learned: int | None = None) -> dict[str, float]:
        """The means over suites that can be computed; `hmean` needs the stream's final average (0..100)."""
        kept = self.kept(learned)
        if not kept:
            return {}
        after = fmean(suite.after for suite in kept.values())
        found = {
            "mean_before": fmean(suite.before for suite in kept.values()),
            "mean_after": after,
            "mean_difference": fmean(suite.difference for suite in kept.values()),
        }
        shares = [suite.retained for suite in kept.values()]
        known = [share for share in shares if share is not None]
        if len(known) == len(shares):
            found["mean_retained"] = fmean(known)
        if final_average is not None and final_average + after > 0:
            found["hmean"] = 2.0 * final_average * after / (final_average + after)
        return found

    # ---- general.json

    def to_dict(self, final_average: float | None = None) -> dict[str, object]:
        """Plain JSON: every row, and the retention of the last one."""
        retention = {
            suite: {name: getattr(kept, name) for name in ("before", "after", "difference", "retained")}
            for suite, kept in self.kept().items()
        }
        return {
            "format": FORMAT,
            "rows": [
                {"tasks_learned": learned, "after": self.after[learned], "figures": self.figures[learned]}
                for learned in sorted(self.figures)
            ],
            "retention": retention,
            "summary": self.summary(final_average),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> GeneralScores:
        """The inverse of `to_dict`; raises `DataError`."""
        try:
            if content["format"] != FORMAT:
                raise DataError(f"general scores have format {content['format']!r}, expected {FORMAT!r}.")
            scores = cls()
            for row in cast("list[dict[str, object]]", content["rows"]):
                learned, after = int(str(row["tasks_learned"])), str(row["after"])
                for suite, figures in cast("dict[str, dict[str, float]]", row["figures"]).items():
                    found = {str(name): float(value) for name, value in figures.items()}
                    if not all(map(math.isfinite, found.values())):
                        raise ValueError(f"a figure of {suite} is no finite number")
                    scores = scores.plus(learned, after, suite, found | {"score": found["score"]})
            return scores
        except ODD as error:
            raise DataError(f"this is not a file of general scores ({error!r}).") from error

    def write(self, path: Place, final_average: float | None = None) -> None:
        """Replace the file atomically."""
        text = json.dumps(self.to_dict(final_average), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(path, text + "\n")

    @classmethod
    def read(cls, path: Place) -> GeneralScores:
        """From a general.json; empty when there is none yet; raises `DataError` when it is broken."""
        if not path.is_file():
            return cls()
        advice = "delete it to have its suites scored again"
        content = read_object(path, DataError, advice)
        with understood(path, DataError, advice):
            return cls.from_dict(content)
