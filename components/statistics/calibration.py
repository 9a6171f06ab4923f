"""Calibration of the forecasts: each finished run, forecast from the others after each task, against its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from components.evaluation.heatmap import image_of
from components.evaluation.matrix import MatrixError
from components.statistics.forecast import FIGURES, PastRun, distinct, forecast
from components.statistics.intervals import Interval

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_COLOURS = {"final_average": "#1c6586", "forgetting": "#c2691f"}
_SOFT = "#6b7c86"
_DPI = 130


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One figure of one run: the forecast before its end, and its value at the end."""

    figure: str
    num_learned: int
    expected: Interval
    came: float

    @property
    def held(self) -> bool:
        """Whether the interval contains the outcome."""
        return self.expected.low <= self.came <= self.expected.high


def outcomes(past: Sequence[PastRun], level: float) -> list[Outcome]:
    """Every distinct run after every task but the last, forecast by the runs of other methods.

    An interval claims `expected.level`, below `level` where the runs are few. Raises `MatrixError` as `forecast` does.
    """
    runs = distinct(past)
    return [
        Outcome(figure=name, num_learned=count, expected=made.figures[name], came=run.matrix.summary()[name])
        for run in runs
        for count in range(1, len(run.matrix.tasks))
        for beside in [[other for other in runs if other.matrix.tasks == run.matrix.tasks]]
        for made in [forecast(PastRun(method=run.method, matrix=run.matrix.at(count)), beside, level=level)]
        for name in FIGURES
    ]


def draw_calibration(past: Sequence[PastRun], title: str) -> Image.Image:
    """Left: forecast against outcome. Right: claimed level against the share of intervals that held.

    Raises `MatrixError` for no runs.
    """
    if not past:
        raise MatrixError("a calibration needs finished runs; none was given.")
    figure = Figure(figsize=(9.6, 4.6), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_misses(left, outcomes(past, LEVELS[-1]))
    _draw_levels(right, past)
    figure.suptitle(title, fontsize=11)
    return image_of(figure)


def _draw_misses(axes: Axes, found: Sequence[Outcome]) -> None:
    for name, colour in _COLOURS.items():
        own = [one for one in found if one.figure == name]
        reach = [
            [one.expected.estimate - one.expected.low for one in own],
            [one.expected.high - one.expected.estimate for one in own],
        ]
        axes.errorbar(
            [one.came for one in own],
            [one.expected.estimate for one in own],
            yerr=reach,
            fmt="o",
            markersize=4,
            color=colour,
            elinewidth=0.7,
            alpha=0.75,
            label=name.replace("_", " "),
        )
    ends = [one.came for one in found]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=_SOFT, linewidth=1, linestyle="--")
    axes.set_xlabel("came")
    axes.set_ylabel("expected")
    axes.legend(frameon=False, fontsize=8)


def _draw_levels(axes: Axes, past: Sequence[PastRun]) -> None:
    by_level = [outcomes(past, level) for level in LEVELS]
    for name, colour in _COLOURS.items():
        own = [[one for one in found if one.figure == name] for found in by_level]
        claimed = [sum(one.expected.level for one in found) / len(found) for found in own]
        held = [sum(one.held for one in found) / len(found) for found in own]
        axes.plot(claimed, held, "o-", color=colour, markersize=4, label=name.replace("_", " "))
    axes.plot([0.4, 1], [0.4, 1], color=_SOFT, linewidth=1, linestyle="--")
    axes.set_xlabel("level claimed (at most what so few runs support)")
    axes.set_ylabel(f"share held, of {len(by_level[0]) // len(FIGURES)}")
    axes.set_ylim(0, 1.02)
