"""Heat maps as tables: every cell prints its value on a colour of the page with enough contrast.

A table needs no script, is read aloud cell by cell, prints, and shows more decimals than a colour scale; so score
matrices and routing shares are tables, and only what has an axis is a chart (components/reporting/charts.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from numpy.typing import NDArray

from components.evaluation.matrix import ZERO_SHOT, ScoreMatrix

STEPS = 20  # colours of 0..100 after the first, one for every 5 points
SCALES = {  # from 0 to 100
    "light": ("#f7fbfc", "#a9d6da", "#3f9fb0", "#1c6586", "#0c2f4f"),
    "dark": ("#1a2228", "#1d4654", "#2a7f8e", "#6cc3c4", "#d9f3ee"),
}
_INKS = ("#0b1216", "#ffffff")


@dataclass(frozen=True, kw_only=True)
class HeatCell:
    """One value of 0..100, None where nothing was measured. `marked` is outlined."""

    value: float | None
    marked: bool = False

    @property
    def text(self) -> str:
        """The value with one decimal."""
        return "" if self.value is None else f"{self.value:.1f}"

    @property
    def step(self) -> int:
        """Which of the page's colours, 0..STEPS; raises `ValueError` for a cell without a value."""
        if self.value is None:
            raise ValueError("a cell without a value has no colour")
        return round(min(max(self.value, 0.0), 100.0) / 100.0 * STEPS)


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A titled table of cells. `corner` says what the rows are, `note` is printed below the title."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    note: str = ""


def score_map(title: str, matrices: Sequence[ScoreMatrix]) -> HeatMap:
    """The mean of score matrices of one stream, with the running average; each task when new is marked, where the
    stream has boundaries.

    A cell that any of them lacks stays empty. Raises `ValueError` for no matrix.
    """
    if not matrices:
        raise ValueError("a heat map needs at least one score matrix")
    first = min(matrices, key=lambda matrix: matrix.num_learned)
    values = np.mean([matrix.values[: first.num_learned + 1] for matrix in matrices], axis=0)
    from_row = 0 if all(matrix.has_zero_shot for matrix in matrices) else 1
    rows = [
        (ZERO_SHOT if row == 0 else first.steps[row - 1], _row(values[row], row if first.points is None else 0))
        for row in range(from_row, len(values))
    ]
    note = "" if len(matrices) == 1 else f"mean of {len(matrices)} seeds"
    return HeatMap(title=title, corner="after", columns=(*first.tasks, "average"), rows=tuple(rows), note=note)


def share_map(title: str, corner: str, shares: dict[str, dict[str, float]], note: str = "") -> HeatMap:
    """Shares (0..1) of each row by column as percent; a row's cell in the column of its own name is marked."""
    columns = tuple(dict.fromkeys(column for row in shares.values() for column in row))
    rows = tuple(
        (name, tuple(HeatCell(value=100.0 * row.get(column, 0.0), marked=column == name) for column in columns))
        for name, row in shares.items()
    )
    return HeatMap(title=title, corner=corner, columns=columns, rows=rows, note=note)


def colours(theme: str) -> list[tuple[str, str]]:
    """Background and ink of every step, as hexadecimal colours; `theme` is light or dark."""
    scale = LinearSegmentedColormap.from_list(theme, SCALES[theme], N=STEPS + 1)
    backs = [to_hex(scale(step)) for step in range(STEPS + 1)]
    return [(back, max(_INKS, key=lambda ink: contrast(ink, back))) for back in backs]


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two hexadecimal colours, 1..21 (WCAG 2.2, "contrast ratio" and "relative luminance")."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _row(values: NDArray[np.float64], learned: int) -> tuple[HeatCell, ...]:
    """A row after `learned` tasks; 0: one whose average is of all tasks, and in which none is new."""
    cells = [
        HeatCell(value=None if math.isnan(value) else float(value), marked=column == learned - 1)
        for column, value in enumerate(values)
    ]
    counted = values[: learned or None]
    average = None if np.isnan(counted).any() else float(counted.mean())
    return (*cells, HeatCell(value=average))


def _luminance(colour: str) -> float:
    parts = np.array(to_rgb(colour))
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))
