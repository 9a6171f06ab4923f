"""Simulated runs whose true figures are known: seeds and test rows as random effects on the logit of being right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from components.statistics.contributions import Contributions, Draw

SHARES = np.array([0.35, 0.80, 0.30, 0.45])  # right answers a task, as in the recorded runs of mini-COAST


def final_averages(
    draws: np.random.Generator,
    *,
    num_runs: int,
    num_rows: int,
    seed_effect: float = 0.0,
    row_effect: float = 0.0,
    shift: float = 0.0,
    row_levels: NDArray[np.float64] | None = None,
) -> Contributions:
    """The final averages of runs on the same rows; effects are standard deviations of the logit, `shift` adds to it.

    `row_levels` [tasks, 1, rows] makes a second method answer the rows of a first one.
    """
    levels = row_effect * draws.normal(size=(len(SHARES), 1, num_rows)) if row_levels is None else row_levels
    seeds = seed_effect * draws.normal(size=(len(SHARES), num_runs, 1))
    right = draws.random((len(SHARES), num_runs, num_rows)) < expit(
        logit(SHARES)[:, None, None] + levels + seeds + shift
    )
    by_task = {f"task {j}": 100.0 * right[j] / len(SHARES) for j in range(len(SHARES))}
    return Contributions(figure="final_average", draws=tuple(map(Draw, range(num_runs))), by_task=by_task)


def true_average(*, seed_effect: float = 0.0, row_effect: float = 0.0, shift: float = 0.0) -> float:
    """The expected final average over seeds and rows, by Gauss-Hermite quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    spread = np.hypot(seed_effect, row_effect)
    right = expit(logit(SHARES)[:, None] + shift + spread * points)
    return float(100.0 * (right @ weights).mean() / weights.sum())
