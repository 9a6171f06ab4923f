"""Pictures of a stream: the score matrix and the use of a routed method's slots. Matplotlib without global state."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from components.evaluation.matrix import ScoreMatrix

_SCALE = LinearSegmentedColormap.from_list("littoral", ["#f7fbfc", "#a9d6da", "#3f9fb0", "#1c6586", "#0c2f4f"])
_INK, _SOFT, _LINE = "#1b2a33", "#6b7c86", "#c3ced4"
_DARK_FROM = 0.55  # share of the scale from which white figures read better
_DPI = 130
_MOST_CELLS = 12  # tasks whose cells are drawn one by one, with figures
_MOST_NAMED, _WIDEST = 40, 16.0  # slots with figures in their cells; inches, before margins


def draw_score_matrix(matrix: ScoreMatrix, title: str) -> Image.Image:
    """The matrix as a heat map: one row per learned task or point, one column per task, the running average on the
    right.

    Colours span 0..100 in every picture, so that pictures of different runs compare. The outlined diagonal, which a
    stream without boundaries has not, is each task right after it was learned; hatched cells were not evaluated. Of
    more than `_MOST_CELLS` tasks it is one image without figures, at most `_WIDEST` inches wide, in which cells that
    were not evaluated are grey.
    """
    values = matrix.values if matrix.has_zero_shot else matrix.values[1:]
    labels = ["zero-shot" if after == "zero-shot" else f"after {after}" for after in matrix.after]
    num_rows, num_tasks = values.shape
    if num_tasks > _MOST_CELLS:
        return _draw_large(matrix, values, labels, title)
    figure, top = _figure(num_rows, num_tasks + 1.35, labels, matrix.tasks, title)
    axes = figure.axes[0]
    first_task_row = int(matrix.has_zero_shot)
    for row, column in np.ndindex(num_rows, num_tasks):
        _cell(axes, column, row, float(values[row, column]), 100.0)
        if matrix.points is None and row - first_task_row == column:
            axes.add_patch(
                Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, fill=False, edgecolor=_INK, linewidth=1.8)
            )
    averages = [_running_average(matrix, row - first_task_row + 1) for row in range(num_rows)]
    for row, average in enumerate(averages):
        _cell(axes, num_tasks + 0.35, row, average, 100.0)
    _column_name(axes, num_tasks + 0.85, "average", top, weight="bold")
    axes.set_xlim(0, num_tasks + 1.35)
    axes.set_ylim(num_rows, 0)
    figure.text(0.5, 0.035, _caption(matrix), ha="center", va="bottom", fontsize=9, color=_SOFT)
    return image_of(figure)


def _draw_large(matrix: ScoreMatrix, values: NDArray[np.float64], labels: Sequence[str], title: str) -> Image.Image:
    """A matrix of many tasks as one image: its size is bounded and drawing takes about as long for any number."""
    (num_rows, num_tasks), first = values.shape, int(matrix.has_zero_shot)
    averages = np.array([_running_average(matrix, learned) for learned in range(1 - first, num_rows + 1 - first)])
    gap = max(1, num_tasks // 40)  # columns between the matrix and its averages, which are as wide
    beside = np.full((num_rows, gap), np.nan)
    cells = np.hstack([values, beside, np.repeat(averages[:, None], gap, axis=1)])
    size = _WIDEST / 2
    figure = Figure(figsize=(size + 2.5, size * max(num_rows / num_tasks, 0.2) + 2.5), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    scale = _SCALE.with_extremes(bad="#e1e7ea")
    image = axes.imshow(cells, cmap=scale, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.4, aspect=30, pad=0.02).outline.set_visible(False)
    axes.axvspan(num_tasks - 0.5, num_tasks + gap - 0.5, color="white")
    diagonal = np.arange(0 if matrix.points is not None else num_rows - first)
    size_of_dot = min(4.0, 120 / num_tasks)
    axes.plot(diagonal, diagonal + first, "o", color="white", mec=_INK, mew=size_of_dot / 8, markersize=size_of_dot)
    every = max(1, math.ceil(num_tasks / _MOST_NAMED))
    axes.set_yticks(np.arange(0, num_rows, every), labels[::every], fontsize=7, color=_INK)
    axes.set_xticks(np.arange(0, num_tasks, every), matrix.tasks[::every], fontsize=7, color=_INK, rotation=90)
    axes.text(num_tasks + 1.5 * gap - 0.5, -1, "average", rotation=90, ha="center", va="bottom", fontsize=8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.suptitle(title, fontsize=12, color=_INK, fontweight="bold")
    figure.supxlabel(_caption(matrix), fontsize=9, color=_SOFT)
    figure.set_layout_engine("tight")
    return image_of(figure)


def draw_slot_usage(usage: Mapping[str, Sequence[int]], title: str) -> Image.Image:
    """How often each slot served each evaluated task: rows are tasks, columns slots, colours the row's shares.

    Unused slots are counted below. Many slots become narrow stripes without figures.
    """
    tasks, counts = list(usage), np.array(list(usage.values()), dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    num_slots = shares.shape[1]
    figure, _ = _figure(len(tasks), min(num_slots * 0.5, _WIDEST), tasks, [], title)
    axes = figure.axes[0]
    axes.imshow(
        shares,
        cmap=_SCALE,
        vmin=0,
        vmax=max(float(shares.max()), 1e-9),
        aspect="auto",
        extent=(0.0, shares.shape[1], shares.shape[0], 0.0),
        interpolation="nearest",
    )
    ticks = np.arange(0, num_slots, max(1, num_slots // _MOST_NAMED))
    axes.set_xticks(ticks + 0.5, [str(slot) for slot in ticks], fontsize=7)
    dead = int((counts.sum(axis=0) == 0).sum())
    axes.set_xlabel(f"slot  ·  {dead} of {num_slots} unused", fontsize=9, color=_SOFT)
    for row, column in np.ndindex(*shares.shape) if shares.size <= _MOST_NAMED * _MOST_CELLS else ():
        if shares[row, column] >= 0.005:
            dark = shares[row, column] >= _DARK_FROM * shares.max()
            colour = "white" if dark else _INK
            text = f"{100 * shares[row, column]:.0f}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6.5, color=colour)
    return image_of(figure)


def _figure(
    num_rows: int, width: float, rows: Sequence[str], columns: Sequence[str], title: str
) -> tuple[Figure, float]:
    """An empty picture with row and column names; also the angle of the column names."""
    longest_row = max((len(name) for name in rows), default=0)
    longest_column = max((len(name) for name in columns), default=0)
    top = 0.0 if longest_column <= 10 else 35.0
    left_in, bottom_in = 0.35 + 0.085 * longest_row, 0.75
    top_in = 0.95 if top == 0.0 else 0.95 + 0.05 * longest_column
    body = (max(width * 0.95, 3.2), min(max(num_rows * 0.62, 0.62), _WIDEST))
    size = (left_in + body[0] + 0.35, bottom_in + body[1] + top_in)
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left_in / size[0], bottom_in / size[1], body[0] / size[0], body[1] / size[1]))
    every = math.ceil(num_rows / 60) or 1
    axes.set_yticks(np.arange(0, num_rows, every) + 0.5, list(rows)[::every], fontsize=9.5, color=_INK)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for column, name in enumerate(columns):
        _column_name(axes, column + 0.5, name, top)
    figure.text(0.5, 1 - 0.3 / size[1], title, ha="center", va="center", fontsize=12, color=_INK, fontweight="bold")
    return figure, top


def _column_name(axes: Axes, x: float, name: str, angle: float, weight: str = "normal") -> None:
    align = "center" if angle == 0 else "left"
    axes.text(x, -0.14, name, rotation=angle, ha=align, va="bottom", fontsize=9.5, color=_INK, fontweight=weight)


def _cell(axes: Axes, x: float, y: float, value: float, full: float) -> None:
    """One annotated square at (x, y); hatched when `value` is NaN."""
    if np.isnan(value):
        square = Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, linewidth=0, facecolor="#fafbfb", edgecolor="#e1e7ea")
        square.set_hatch("////")
        axes.add_patch(square)
        return
    share = min(max(value / full, 0.0), 1.0)
    axes.add_patch(Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, facecolor=_SCALE(share), edgecolor=_LINE, linewidth=0.6))
    colour = "white" if share >= _DARK_FROM else _INK
    axes.text(x + 0.5, y + 0.5, f"{value:.1f}", ha="center", va="center", fontsize=11, color=colour)


def _running_average(matrix: ScoreMatrix, learned: int) -> float:
    """The average over the tasks learned so far, NaN where a figure needs cells that were not evaluated."""
    name = "zero_shot_average" if learned == 0 else "final_average"
    return matrix.at(learned).summary().get(name, float("nan"))


def _caption(matrix: ScoreMatrix) -> str:
    summary = matrix.summary()
    names = {"final_average": "final average", "forgetting": "forgetting", "bwt": "BWT", "mean_average": "mean average"}
    names["average_over_time"] = "average over time"
    parts = [f"{text} {summary[name]:.2f}" for name, text in names.items() if name in summary]
    return "   ·   ".join(parts) or "no task learned yet"


def image_of(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
