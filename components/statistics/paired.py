"""Two methods on the same seeds and the same test rows: difference, tests, effect size, and a verdict as a sentence.

Everything is computed on differences between one seed's two runs on one row, which removes how hard the row is. A claim
about methods has to hold for other seeds too, so it takes three common seeds, and the t test of `intervals.over_both`
decides. Fewer give no verdict and no p value of the methods. A sign-flip test over rows is about two single runs: under
the null hypothesis either could have had either score. It calls two runs of one method different too often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from components.statistics.contributions import Contributions, Draw
from components.statistics.intervals import LEVEL, SAME, Interval, Variance, holm, over_both, over_rows, variance_of

POWER = 0.8
FLIPS = 9999  # random draws of signs
MOST_SEEDS = 200  # more than anyone would run
LEAST_SEEDS = 3  # for a verdict on methods
MOST_ROWS = 50.0  # times as many test rows as there are: more than anyone would collect

VerdictKind = Literal["better", "worse", "not distinguishable", "tie", "no verdict"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One method minus another in one figure, in points."""

    figure: str
    draws: tuple[Draw, ...]
    difference: Interval  # over rows and seeds; over rows only for one run of each
    p: float | None  # two-sided, of the methods; None below three seeds
    p_rows: float  # sign flips over test rows, these runs as they are
    effect: float | None  # Cohen's d_z over test rows within tasks; None where every row differs by the same
    rows_above: int  # pairs of answers (one seed, one row) where the first adds more to the figure
    rows_below: int
    seeds_needed: int | None  # in all, for 80 % power if the difference is as observed; None when no number is enough
    rows_needed: float | None  # times as many test rows, where rows are what is missing

    @property
    def num_seeds(self) -> int:
        """Common seeds, however many orders each was run in."""
        return len({draw.seed for draw in self.draws})

    @property
    def alike(self) -> bool:
        """Whether every test row adds the same to the figure under both."""
        return self.rows_above == self.rows_below == 0

    @property
    def claimed_p(self) -> float | None:
        """The p value of what is claimed: of the methods, or of the two runs where there is one of each."""
        return self.p_rows if len(self.draws) == 1 else self.p


def compare(first: Contributions, second: Contributions) -> Comparison:
    """First minus second, over their common seeds and orders; raises `MatrixError` for none or for other test rows."""
    pairs = first.minus(second)
    several = len(pairs.draws) > 1
    difference = over_both(pairs) if several else over_rows(pairs)
    variance = variance_of(pairs) if several else None
    enough = len({draw.seed for draw in pairs.draws}) >= LEAST_SEEDS
    signs = np.concatenate([np.sign(np.where(abs(rows) < SAME, 0.0, rows)).ravel() for rows in pairs.by_task.values()])
    return Comparison(
        figure=pairs.figure,
        draws=pairs.draws,
        difference=difference,
        p=_student_p(difference.estimate, variance) if variance is not None and enough else None,
        p_rows=flip_rows(pairs),
        effect=effect_size(pairs),
        rows_above=int((signs > 0).sum()),
        rows_below=int((signs < 0).sum()),
        seeds_needed=None if variance is None else seeds_needed(difference.estimate, variance),
        rows_needed=None if variance is None else rows_needed(difference.estimate, variance),
    )


def flip_rows(pairs: Contributions, *, resamples: int = FLIPS, seed: int = 0) -> float:
    """P value of flipping the sign of each row's difference (averaged over the runs), by random draws."""
    steps = np.concatenate([rows / len(rows) for rows in pairs.row_means().values()])
    sizes, counts = np.unique(np.round(abs(steps), 12), return_counts=True)
    # flipping m rows of one size = drawing how many of them stay positive
    positive = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, len(counts)))
    sums = (2 * positive - counts) @ sizes
    return float((1 + (abs(sums) >= abs(steps.sum()) - SAME).sum()) / (1 + resamples))


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
    """Seeds in all, three or more, for 80 % power if the true difference is `difference`; None where 200 are too few.

    For a test at 5 % of this one comparison; Holm's correction over several takes more.
    """
    enough = (count for count in range(LEAST_SEEDS, MOST_SEEDS + 1) if power_of(difference, variance, count) >= POWER)
    return next(enough, None) if rows_needed(difference, variance) is None else None


def rows_needed(difference: float, variance: Variance) -> float | None:
    """How many times as many test rows 80 % power takes even with unlimited seeds; None where these rows are enough."""
    reach = float(stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER))
    if difference == 0.0:
        return math.inf
    times = variance.common_rows * (reach / difference) ** 2
    return times if times > 1 else None


def adjusted(comparisons: Sequence[Comparison]) -> list[float | None]:
    """`claimed_p` of claims made together, adjusted by Holm, in the order given; None where nothing is claimed."""
    claimed = [one.claimed_p for one in comparisons]
    found = iter(holm([p for p in claimed if p is not None]))
    return [None if p is None else next(found) for p in claimed]


def kind_of(comparison: Comparison, adjusted_p: float | None) -> VerdictKind:
    """The kind of verdict on the first method against the second; less forgetting is better."""
    if comparison.alike or abs(comparison.difference.estimate) < SAME:
        return "tie"
    if comparison.num_seeds < LEAST_SEEDS:
        return "no verdict"
    if adjusted_p is None or adjusted_p >= 1 - LEVEL:
        return "not distinguishable"
    return "better" if (comparison.difference.estimate > 0) != _forgets(comparison) else "worse"


def verdict(comparison: Comparison, first: str, second: str, *, adjusted_p: float | None = None) -> str:
    """One sentence on `first` against `second`; `adjusted_p` replaces p where several comparisons were made."""
    p = comparison.claimed_p if adjusted_p is None else adjusted_p
    found, kind = f"{first} {_outcome(comparison, second)}", kind_of(comparison, p)
    if kind == "no verdict":
        found += _rows_alone(comparison, p)
        return f"no verdict, {runs_text(comparison)}: {found}; run at least {LEAST_SEEDS} seeds."
    if kind == "tie":
        return f"tie: {found} ({runs_text(comparison)})."
    if kind == "not distinguishable":
        return (
            f"not distinguishable at this size: {found} ({p_text(p)}, {runs_text(comparison)}); {_missing(comparison)}."
        )
    return f"distinguishable: {found} ({p_text(p)}, {runs_text(comparison)})."


def short_verdict(comparison: Comparison, first: str, *, adjusted_p: float | None = None) -> str:
    """`first` with its difference and what makes the verdict, for a sentence that names several methods of a kind."""
    p = comparison.claimed_p if adjusted_p is None else adjusted_p
    kind, points = kind_of(comparison, p), f"{comparison.difference.estimate:+.1f}".replace("-0.0", "+0.0")
    if kind == "tie":
        return first if comparison.alike else f"{first} (on average)"
    parts = [points, *([] if p is None else [p_text(p)])]
    if kind == "not distinguishable":
        parts.append(_short_missing(comparison))
    return f"{first} ({', '.join(parts)})"


def runs_text(comparison: Comparison) -> str:
    """`3 seeds`, or `5 seeds in 2 orders`."""
    count, orders = comparison.num_seeds, {draw.order for draw in comparison.draws}
    seeds = {1: "one seed", 2: "two seeds"}.get(count, f"{count} seeds")
    return seeds if len(orders) == 1 else f"{seeds} in {len(orders)} orders"


def p_text(p: float | None, *, name: bool = True) -> str:
    """`p = 0.063`, `p < 0.001`; without `name` for a column headed p. Never 0.000; "-" where none is given."""
    if p is None:
        return "-"
    if not name:
        return "< 0.001" if p < 0.001 else f"{p:.3f}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _forgets(comparison: Comparison) -> bool:
    return comparison.figure.startswith("forgetting")


def _rows_alone(comparison: Comparison, p: float | None) -> str:
    """What a single pair of runs can say: whether the choice of test rows explains their difference."""
    if len(comparison.draws) > 1 or p is None:
        return ""
    explains = "more than the test rows explain" if p < 1 - LEVEL else "no more than the test rows explain"
    return f", {explains}, {p_text(p)}"


def _student_p(difference: float, variance: Variance) -> float:
    if variance.total == 0.0:
        return float(difference == 0.0)
    return float(2 * stats.t.sf(abs(difference) / math.sqrt(variance.total), variance.freedom))


def _outcome(comparison: Comparison, second: str) -> str:
    points, forgets = comparison.difference.estimate, _forgets(comparison)
    if comparison.alike:
        return f"and {second} {'forget' if forgets else 'score'} the same on every test row"
    if abs(points) < SAME:
        return f"and {second} {'forget' if forgets else 'score'} the same on average"
    size = "less than 0.1 points" if abs(points) < 0.05 else f"{abs(points):.1f} points"
    if forgets:
        return f"forgets {size} {'more' if points > 0 else 'less'} than {second}"
    verb = "ends" if comparison.figure == "final_average" else "is"
    return f"{verb} {size} {'above' if points > 0 else 'below'} {second}"


def _missing(comparison: Comparison) -> str:
    more, rows = _more_seeds(comparison), comparison.rows_needed
    if more is not None:
        return f"about {more} more seed{'s' if more > 1 else ''} needed if the difference is real"
    if rows is not None and rows < MOST_ROWS:
        return f"seeds alone will not do, it takes about {rows:.1f} times as many test rows as well"
    return "the difference is too small to be found with any practical number of seeds"


def _short_missing(comparison: Comparison) -> str:
    more, rows = _more_seeds(comparison), comparison.rows_needed
    if more is not None:
        return f"{more} more seed{'s' if more > 1 else ''} needed"
    return f"needs {rows:.1f} times as many rows" if rows is not None and rows < MOST_ROWS else "too small to be found"


def _more_seeds(comparison: Comparison) -> int | None:
    if comparison.seeds_needed is None:
        return None
    orders = len({draw.order for draw in comparison.draws})
    return max(math.ceil((comparison.seeds_needed - len(comparison.draws)) / orders), 1)
