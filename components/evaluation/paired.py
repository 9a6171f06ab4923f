"""Two methods on the same seeds and the same test rows: difference, tests, effect size, and a verdict in plain words.

Everything is computed on differences of one seed's two runs on one row, which removes what both find hard. Which p
value counts depends on the claim. With one common seed only the two runs can be told apart: signs of the rows'
differences are flipped (under the null hypothesis either run could have had either score). A claim about methods has
to hold for other seeds too, so with several seeds the t of `statistics.over_both` counts. The two flip tests stand
beside it: over rows (it calls two runs of one method different too often), and over seeds (exact; with R seeds never
below 2 / 2^R, so silent at 5 % for fewer than six).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import stats

from components.evaluation.contributions import Contributions, Draw
from components.evaluation.statistics import (
    LEVEL,
    RESAMPLES,
    SAME,
    Interval,
    Variance,
    over_both,
    over_rows,
    variance_of,
)

POWER = 0.8
MOST_SEEDS = 200  # more than anybody runs
MOST_FLIPPED = 16  # seeds whose signs are flipped in every way; more are drawn


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One method minus another in one figure, in points."""

    figure: str
    draws: tuple[Draw, ...]
    difference: Interval  # over rows and seeds; over rows only for one seed
    p: float  # two-sided: of the methods for several seeds, of the two runs for one
    p_rows: float  # sign flips over test rows, these runs as they are
    p_seeds: float | None  # sign flips over seeds; None for one seed
    effect: float | None  # Cohen's d_z over test rows within tasks; None where every row differs by the same
    rows_above: int  # pairs of answers (one seed, one row) where the first adds more to the figure
    rows_below: int
    seeds_needed: int | None  # in all, for 80 % power if the difference is as observed; None when no number is enough
    rows_needed: float | None  # times as many test rows, where rows are what is missing


def compare(first: Contributions, second: Contributions, *, seed: int = 0) -> Comparison:
    """First minus second, over their common seeds and orders; raises `MatrixError` for none or for other test rows."""
    pairs = first.minus(second)
    several = len(pairs.draws) > 1
    difference = over_both(pairs) if several else over_rows(pairs, seed=seed)
    p_rows = flip_rows(pairs, seed=seed)
    variance = variance_of(pairs) if several else None
    signs = np.concatenate([np.sign(np.where(abs(rows) < SAME, 0.0, rows)).ravel() for rows in pairs.by_task.values()])
    return Comparison(
        figure=pairs.figure,
        draws=pairs.draws,
        difference=difference,
        p=p_rows if variance is None else _student_p(difference.estimate, variance),
        p_rows=p_rows,
        p_seeds=flip_seeds(pairs, seed=seed) if several else None,
        effect=effect_size(pairs),
        rows_above=int((signs > 0).sum()),
        rows_below=int((signs < 0).sum()),
        seeds_needed=None if variance is None else seeds_needed(difference.estimate, variance),
        rows_needed=None if variance is None else rows_needed(difference.estimate, variance),
    )


def flip_rows(pairs: Contributions, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """P value of flipping the sign of each row's difference (averaged over the runs), by random draws."""
    steps = np.concatenate([rows / len(rows) for rows in pairs.row_means().values()])
    sizes, counts = np.unique(np.round(abs(steps), 12), return_counts=True)
    # flipping m rows of one size = drawing how many of them stay positive
    positive = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, len(counts)))
    sums = (2 * positive - counts) @ sizes
    return float((1 + (abs(sums) >= abs(steps.sum()) - SAME).sum()) / (1 + resamples))


def flip_seeds(pairs: Contributions, *, seed: int = 0) -> float:
    """P value of flipping the sign of each seed's difference: all ways for up to 16 seeds, random draws for more."""
    values = pairs.values()
    if len(values) <= MOST_FLIPPED:
        signs = np.array(list(product((-1, 1), repeat=len(values))))
        return float((abs(signs @ values) >= abs(values.sum()) - SAME).mean())
    signs = np.random.default_rng(seed).choice((-1, 1), size=(RESAMPLES, len(values)))
    return float((1 + (abs(signs @ values) >= abs(values.sum()) - SAME).sum()) / (1 + RESAMPLES))


def effect_size(pairs: Contributions) -> float | None:
    """Cohen's d_z over test rows: the mean difference over the rows' standard deviation within tasks.

    Tasks weigh alike, whatever their number of rows. 0.2 is called small, 0.5 medium (Cohen, 1988).
    """
    rows = list(pairs.row_means().values())
    mean = sum(float(row.mean()) for row in rows) / len(rows)
    deviation = math.sqrt(sum(float(row.var(ddof=1)) for row in rows) / len(rows))
    return mean / deviation if deviation > SAME else None


def power_of(difference: float, variance: Variance, num_seeds: int) -> float:
    """Chance that a two-sided 5 % test finds a true `difference` with this many seeds on the same number of rows."""
    between_runs = variance.between_runs * variance.num_runs / num_seeds
    total = between_runs + variance.common_rows
    if total == 0.0:
        return float(difference != 0.0)
    freedom = total**2 / (between_runs**2 / (num_seeds - 1) + variance.common_rows**2 / variance.row_freedom)
    limit, away = stats.t.ppf((1 + LEVEL) / 2, freedom), difference / math.sqrt(total)
    return float(stats.nct.sf(limit, freedom, abs(away)) + stats.nct.cdf(-limit, freedom, abs(away)))


def seeds_needed(difference: float, variance: Variance) -> int | None:
    """Seeds in all for 80 % power if the true difference is `difference`; None where 200 are not enough.

    For a test at 5 % of this one comparison; Holm's correction over several takes more.
    """
    enough = (count for count in range(2, MOST_SEEDS + 1) if power_of(difference, variance, count) >= POWER)
    return next(enough, None) if rows_needed(difference, variance) is None else None


def rows_needed(difference: float, variance: Variance) -> float | None:
    """How many times as many test rows 80 % power takes even with endless seeds; None where these rows are enough."""
    reach = float(stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER))
    if difference == 0.0:
        return math.inf
    times = variance.common_rows * (reach / difference) ** 2
    return times if times > 1 else None


def verdict(comparison: Comparison, first: str, second: str, *, adjusted_p: float | None = None) -> str:
    """One sentence on `first` against `second`; `adjusted_p` replaces p where several comparisons were made."""
    p = comparison.p if adjusted_p is None else adjusted_p
    found = f"{first} {_outcome(comparison)} {second}"
    count = len(comparison.draws)
    if comparison.rows_above == comparison.rows_below == 0:
        same = "forget the same" if comparison.figure.startswith("forgetting") else "score the same"
        return f"no difference: {first} and {second} {same} on every test row."
    if count == 1 and p < 1 - LEVEL:
        return f"one seed: {found}, more than the test rows explain ({_p(p)}); other seeds may differ, run at least 3."
    if count == 1:
        return f"not distinguishable, even in the one common seed: {found} ({_p(p)}); run at least 3 seeds."
    if p < 1 - LEVEL:
        return f"distinguishable: {found} ({_p(p)}, {_runs(comparison)})."
    return f"not distinguishable at this size: {found} ({_p(p)}, {_runs(comparison)}); {_missing(comparison)}."


def _student_p(difference: float, variance: Variance) -> float:
    if variance.total == 0.0:
        return float(difference == 0.0)
    return float(2 * stats.t.sf(abs(difference) / math.sqrt(variance.total), variance.freedom))


def _outcome(comparison: Comparison) -> str:
    points, size = comparison.difference.estimate, f"{abs(comparison.difference.estimate):.1f} points"
    if comparison.figure == "final_average":
        return f"ends {size} {'above' if points >= 0 else 'below'}"
    if comparison.figure.startswith("forgetting"):
        return f"forgets {size} {'more' if points >= 0 else 'less'} than"
    return f"is {size} {'above' if points >= 0 else 'below'}"


def _runs(comparison: Comparison) -> str:
    """`3 seeds`, or `10 runs in 2 orders`."""
    count, orders = len(comparison.draws), {draw.order for draw in comparison.draws}
    return f"{count} seeds" if len(orders) == 1 else f"{count} runs in {len(orders)} orders"


def _missing(comparison: Comparison) -> str:
    if comparison.seeds_needed is not None:
        more = max(comparison.seeds_needed - len(comparison.draws), 1)
        return f"about {more} more seed{'s' if more > 1 else ''} needed if the difference is real"
    if comparison.rows_needed is not None and comparison.rows_needed < 1000:
        return f"seeds alone will not do, it takes about {comparison.rows_needed:.1f} times as many test rows as well"
    return "the difference is too small to be found with any practical number of seeds"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
