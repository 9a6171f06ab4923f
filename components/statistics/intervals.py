"""Intervals of a run's figures: over test rows, and over test rows and seeds together.

Two questions, two intervals:

- `over_rows`: these trained models, other test rows of the same kind. Rows are drawn again within their task
  (stratified bootstrap, percentile), since the figures average tasks, whatever their sizes.
- `over_both`: other rows and other seeds, the one to compare methods by. Every seed answers the same rows, so rows and
  seeds are crossed random effects; with c[r, k] what row k adds in run r, the mean's variance is estimated by

      (between runs) + (between row means) - (their interaction, which both others contain)

  with Satterthwaite's degrees of freedom (Searle, Casella, McCulloch, Variance Components, 1992, chapters 2 and 4).
  Seeds are not resampled: with R = 3 that covers about 70 % where it promises 95, since the variance of a resampled
  mean is (R - 1)/R of the true one's estimate, and three values cannot show a tail. With two runs the
  degrees of freedom are one at most: Satterthwaite's formula trusts a variance that is estimated from one
  difference, and calls equal methods different in 10 % of cases where runs differ by 4 to 6 points.

Rows that all score alike add no width: an average of zeros only has an interval of zero width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from components.core.errors import ConfigError
from components.statistics.contributions import Contributions

LEVEL = 0.95
RESAMPLES = 9999
SAME = 1e-9  # points; resampled sums that differ by less are one value


class StatisticsError(ConfigError, ValueError):
    """Too few runs."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the range that holds the true value in a share `level` of repetitions."""

    estimate: float
    low: float
    high: float
    level: float = LEVEL

    def __str__(self) -> str:
        return f"{self.estimate:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True, kw_only=True)
class Variance:
    """The variance of a figure averaged over R runs on the same rows, in parts (points squared)."""

    num_runs: int
    between_runs: float  # of the runs' figures, over R; holds the interplay
    between_rows: float  # of the rows' means; holds the interplay
    interplay: float  # rows that one run answers better than another, over R
    row_freedom: float  # degrees of freedom of `between_rows`
    freedom: float  # Satterthwaite's, of `total`, one at most for two runs; infinite where nothing varies

    @property
    def total(self) -> float:
        """Never below either part: the interplay is an estimate and may come out too large."""
        return max(self.between_runs + self.common_rows, self.between_rows)

    @property
    def common_rows(self) -> float:
        """What more runs on the same rows do not remove."""
        return max(self.between_rows - self.interplay, 0.0)


def over_rows(figure: Contributions, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile bootstrap over test rows within each task, for these runs as they are."""
    draws = np.random.default_rng(seed)
    sums = np.zeros(resamples)
    for rows in figure.row_means().values():
        # drawing n rows with replacement = drawing how often each distinct value comes: exact, and quick for scores
        values, counts = np.unique(rows, return_counts=True)
        sums += draws.multinomial(len(rows), counts / len(rows), size=resamples) @ values / len(rows)
    low, high = np.quantile(sums, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate=float(figure.values().mean()), low=float(low), high=float(high))


def over_both(figure: Contributions) -> Interval:
    """Over test rows and seeds together; raises `StatisticsError` for fewer than two runs."""
    variance, mean = variance_of(figure), float(figure.values().mean())
    error = math.sqrt(variance.total)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, variance.freedom)) * error if error else 0.0
    return Interval(estimate=mean, low=mean - reach, high=mean + reach)


def variance_of(figure: Contributions) -> Variance:
    """The parts of the variance of the runs' mean; raises `StatisticsError` for fewer than two runs."""
    values = figure.values()
    num_runs = len(values)
    if num_runs < 2:
        raise StatisticsError(f"{num_runs} run has no spread over seeds; give runs of at least two seeds.")
    between_runs = float(values.var(ddof=1)) / num_runs
    squares = between_runs**2 / (num_runs - 1)  # sum of (part squared / its degrees of freedom)
    row_squares = between_rows = interplay = 0.0
    for rows in figure.by_task.values():
        free = rows.shape[1] - 1
        means = rows.mean(axis=0)
        rest = rows - means - rows.mean(axis=1, keepdims=True) + rows.mean()
        own = float(means.var(ddof=1)) / rows.shape[1]
        crossed = float((rest**2).sum()) / ((num_runs - 1) * free) / rows.size
        between_rows, interplay = between_rows + own, interplay + crossed
        row_squares += own**2 / free
        squares += own**2 / free + crossed**2 / ((num_runs - 1) * free)
    variance = Variance(
        num_runs=num_runs,
        between_runs=between_runs,
        between_rows=between_rows,
        interplay=interplay,
        row_freedom=between_rows**2 / row_squares if row_squares else math.inf,
        freedom=math.inf,
    )
    freedom = max(variance.total**2 / squares, 1.0) if squares else math.inf
    if num_runs == 2 and variance.total > 0.0:
        freedom = 1.0
    return replace(variance, freedom=freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for making all these comparisons (Holm 1979), in the order given."""
    count, adjusted, highest = len(p_values), [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(count), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
