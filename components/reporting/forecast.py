"""Forecasts of unfinished runs, and of finished ones what would have been forecast after each of their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.core.errors import ConfigError
from components.core.files import whole_file
from components.reporting.groups import Line, label, require_comparable
from components.runs.results import FinishedRun
from components.statistics.calibration import draw_calibration
from components.statistics.forecast import FIGURES, Forecast, PastRun, forecast, has_triangle
from components.statistics.intervals import Interval

ENOUGH = 19  # past runs from which an interval of 95 % can be had


def forecasts(runs: Sequence[FinishedRun]) -> list[tuple[FinishedRun, Forecast]]:
    """Forecasts of each run: after its tasks so far if unfinished, else after every task but the last.

    A finished run is left out if no run of another method was given to forecast it from. Raises `ConfigError`
    for runs that cannot be compared, and for an unfinished run without a finished one of another method.
    """
    require_comparable(runs)
    past = [as_past(run) for run in runs if run.finished and has_triangle(run.matrix)]
    found: list[tuple[FinishedRun, Forecast]] = []
    for run in runs:
        learned, num_tasks = run.matrix.num_learned, len(run.matrix.tasks)
        beside = [other for other in past if other.matrix.tasks == run.matrix.tasks and other.matrix != run.matrix]
        alone = all(other.method == run.config.method.name for other in beside)
        if run.finished and (alone or not has_triangle(run.matrix)):
            continue  # joint learning has no rows before the end
        for count in range(1, num_tasks) if run.finished else [learned]:
            seen = PastRun(method=run.config.method.name, matrix=run.matrix.at(count))
            # methods that answer with the same branches end alike: the other run would give the answer away
            found.append((run, forecast(seen, beside)))
    if not found:
        raise ConfigError("nothing to forecast: give finished runs of two methods or more, with rows between tasks.")
    return found


def forecast_table(found: Sequence[tuple[FinishedRun, Forecast]]) -> tuple[Line, list[Line], list[str]]:
    """Header, lines, and notes on how far to trust the intervals."""
    header = ["run", "method", "after"]
    for figure in FIGURES:
        header += [f"{figure.replace('_', ' ')} expected", "came"]
    lines: list[Line] = []
    for run, made in found:
        line = [str(run.config.run_id), label(run), f"{made.num_learned} of {len(run.matrix.tasks)}"]
        for figure in FIGURES:
            line += [str(made.figures[figure]), came(run, figure, made.figures[figure])]
        lines.append(line)
    return header, lines, worth(found)


def came(run: FinishedRun, figure: str, expected: Interval) -> str:
    """The finished run's figure, and whether the interval holds it."""
    if not run.finished:
        return ""
    value = run.matrix.summary()[figure]
    return f"{value:.1f}" if expected.low <= value <= expected.high else f"{value:.1f} (outside)"


def worth(found: Sequence[tuple[FinishedRun, Forecast]]) -> list[str]:
    """How far the intervals may be trusted, as sentences, and how often they held where that is known."""
    fewest = min(made.num_past for _, made in found)
    levels = [one.level for _, made in found for one in made.figures.values() if one.level < 1]
    said = []
    if len(levels) < len(FIGURES) * len(found):
        said.append(
            f"Too few finished runs ({fewest} count) for any interval: where [0.0, 100.0] stands, all is possible."
        )
    if levels and fewest < ENOUGH:
        said.append(
            f"{fewest} finished runs of other methods support an interval of {min(levels):.0%} at most; "
            f"95 % takes {ENOUGH}."
        )
    known = [
        (figure, made.figures[figure].low <= run.matrix.summary()[figure] <= made.figures[figure].high)
        for run, made in found
        if run.finished
        for figure in FIGURES
        if made.figures[figure].level < 1
    ]
    if known:
        held = sum(inside for _, inside in known)
        said.append(f"Of {len(known)} forecasts whose outcome is known, {held} held ({held / len(known):.0%}).")
    return said


def as_past(run: FinishedRun) -> PastRun:
    """The run as a source of forecasts."""
    return PastRun(method=run.config.method.name, matrix=run.matrix)


def write_calibration(runs: Sequence[FinishedRun], path: Path) -> Path:
    """Draw how well the finished runs were forecast; raises `ConfigError` for a file that is not PNG."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"the picture {path} would not be PNG; give a name that ends in .png.")
    past = [as_past(run) for run in runs if run.finished and has_triangle(run.matrix)]
    picture = draw_calibration(past, f"Forecasts on {runs[0].config.stream.name}")
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")
    return path
