"""ChartQA in miniature: bar, pie and line charts of real tables, each mark in its own named colour."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from components.data.embedded.drawing import COLORS, GRID, INK, canvas, fit_text
from components.data.embedded.facts import Mark, Partition, Sample, Table, ask, chart_tables
from components.data.embedded.mini_coast.prompts import SHORT, lines

_MAX_RATIO = 25  # a bar shorter than 1/25 of the highest cannot be seen
_TOP_GAP, _BOTTOM_GAP = 0.15, 0.08  # of the highest value: the extremes must be told apart at 224 px
_KIND_WEIGHTS = {"bar": 60, "pie": 25, "line": 15}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What was drawn: marks from left to right (clockwise in a pie) and the colour name of each."""

    kind: str  # "bar", "pie" or "line"
    title: str
    marks: tuple[Mark, ...]
    colors: tuple[str, ...]  # a line has one colour

    @property
    def source(self) -> str:
        return ";".join(dict.fromkeys(mark.source for mark in self.marks))

    def _extreme(self, sign: int) -> int:
        return max(range(len(self.marks)), key=lambda index: sign * self.marks[index].value)

    @property
    def highest(self) -> str:
        """Colour of the highest bar or largest slice."""
        return self.colors[self._extreme(1)]

    @property
    def lowest(self) -> str:
        """Colour of the lowest bar or smallest slice."""
        return self.colors[self._extreme(-1)]


def value_text(value: float) -> str:
    """Three significant digits without an exponent: what is printed at a mark and accepted as its value."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _readable(marks: list[Mark]) -> bool:
    values = sorted(mark.value for mark in marks)
    top = values[-1]
    spread = values[0] * _MAX_RATIO >= top and min(values) >= 0.01
    return spread and top - values[-2] >= _TOP_GAP * top and values[1] - values[0] >= _BOTTOM_GAP * top


def _pick(rng: Random, tables: list[Table], low: int, high: int) -> tuple[Table, list[Mark]]:
    """A table and a readable handful of its rows. Rejection: about one draw in ten passes."""
    while True:
        table = rng.choice(tables)
        count = rng.randint(low, min(high, len(table.marks)))
        marks = rng.sample(table.marks, count)
        if _readable(marks):
            return table, marks


def make_chart(rng: Random, partition: Partition, *, kind: str | None = None) -> Chart:
    """Draw the facts of one chart (no pixels yet)."""
    kind = kind or rng.choices(list(_KIND_WEIGHTS), weights=list(_KIND_WEIGHTS.values()))[0]
    if kind == "line":
        series = [table for table in chart_tables(partition) if table.is_series]
        table = rng.choice(series)
        count = rng.randint(4, min(7, len(table.marks)))
        start = rng.randint(0, len(table.marks) - count)
        marks = table.marks[start : start + count]
        return Chart(kind=kind, title=table.title, marks=marks, colors=(rng.choice(list(COLORS)),))
    tables = [table for table in chart_tables(partition) if not table.is_series]
    table, picked = _pick(rng, tables, 3, 6)
    colors = tuple(rng.sample(list(COLORS), len(picked)))
    return Chart(kind=kind, title=table.title, marks=tuple(picked), colors=colors)


def draw_chart(chart: Chart) -> Image.Image:
    """The picture: title on top, marks, and a legend of swatches and labels below."""
    image, pen = canvas()
    fit_text(pen, (112, 4), chart.title, width=216, size=15, anchor="ma")
    {"bar": _draw_bars, "pie": _draw_pie, "line": _draw_line}[chart.kind](pen, chart)
    if chart.kind != "line":
        for index, (mark, color) in enumerate(zip(chart.marks, chart.colors, strict=True)):
            left, top = 8 + 110 * (index % 2), 176 + 16 * (index // 2)
            pen.rectangle((left, top, left + 9, top + 9), fill=COLORS[color])
            fit_text(pen, (left + 14, top + 4), mark.label, width=92, size=12, anchor="lm")
    return image


def _draw_bars(pen: ImageDraw.ImageDraw, chart: Chart) -> None:
    left, right, top, bottom = 8, 216, 40, 168
    for step in range(5):
        height = bottom - step * (bottom - top) / 4
        pen.line((left, height, right, height), fill=GRID)
    highest = max(mark.value for mark in chart.marks)
    pitch = (right - left) / len(chart.marks)
    for index, (mark, color) in enumerate(zip(chart.marks, chart.colors, strict=True)):
        start = left + index * pitch
        height = bottom - mark.value / highest * (bottom - top)
        pen.rectangle((start + pitch * 0.12, height, start + pitch * 0.88, bottom), fill=COLORS[color])
        fit_text(pen, (start + pitch / 2, height - 2), value_text(mark.value), width=pitch, size=12, anchor="mb")
    pen.line((left, bottom, right, bottom), fill=INK, width=2)


def _draw_pie(pen: ImageDraw.ImageDraw, chart: Chart) -> None:
    total = sum(mark.value for mark in chart.marks)
    angle = -90.0
    for mark, color in zip(chart.marks, chart.colors, strict=True):
        end = angle + 360 * mark.value / total
        pen.pieslice((40, 26, 184, 170), angle, end, fill=COLORS[color], outline=(255, 255, 255), width=2)
        angle = end


def _draw_line(pen: ImageDraw.ImageDraw, chart: Chart) -> None:
    left, right, top, bottom = 24, 200, 44, 186
    values = [mark.value for mark in chart.marks]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    for step in range(5):
        height = bottom - step * (bottom - top) / 4
        pen.line((8, height, 216, height), fill=GRID)
    pitch = (right - left) / (len(values) - 1)
    points = [
        (left + index * pitch, bottom - 8 - (value - low) / span * (bottom - top - 16))
        for index, value in enumerate(values)
    ]
    color = COLORS[chart.colors[0]]
    pen.line(points, fill=color, width=4, joint="curve")
    for (x, y), mark in zip(points, chart.marks, strict=True):
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=color)
        fit_text(pen, (x, 192), mark.label, width=pitch, size=12, anchor="ma")
    pen.line((8, bottom, 216, bottom), fill=INK, width=2)


def _comparison(rng: Random, chart: Chart, names: tuple[str, str, str]) -> tuple[str, str]:
    """A yes/no question about two marks that differ visibly; both answers equally likely."""
    top = max(mark.value for mark in chart.marks)
    pairs = [
        (one, two)
        for one, first in enumerate(chart.marks)
        for two, second in enumerate(chart.marks)
        if first.value - second.value >= 0.2 * top
    ] or [(chart.colors.index(chart.highest), chart.colors.index(chart.lowest))]
    higher, lower = (chart.colors[index] for index in rng.choice(pairs))
    answer = rng.choice(("yes", "no"))
    first, second = (higher, lower) if answer == "yes" else (lower, higher)
    mark, more, _ = names
    return f"Is the {first} {mark} {more} than the {second} {mark}?", answer


def _question(rng: Random, chart: Chart) -> tuple[str, str]:
    """One question and its answer, of a kind the chart can carry."""
    if chart.kind == "line":
        kind = rng.choice(("type", "line color", "points"))
        return {
            "type": ("What type of chart is this: bar, pie or line?", "line"),
            "line color": ("What color is the line?", chart.colors[0]),
            "points": ("How many points does the line have?", str(len(chart.marks))),
        }[kind]
    bar = chart.kind == "bar"
    names = ("bar", "higher", "lower") if bar else ("slice", "larger", "smaller")
    highest, lowest = ("highest", "lowest") if bar else ("largest", "smallest")
    weights = {"highest": 28, "lowest": 18, "count": 18, "compare": 14, "type": 5}
    if bar:
        weights |= {"leftmost": 8, "rightmost": 6, "value": 8}
    kind = rng.choices(list(weights), weights=list(weights.values()))[0]
    if kind == "compare":
        return _comparison(rng, chart, names)
    if kind == "value":
        index = rng.randrange(len(chart.marks))
        return f"What is the value of the {chart.colors[index]} bar?", value_text(chart.marks[index].value)
    return {
        "highest": (f"What color is the {highest} {names[0]}?", chart.highest),
        "lowest": (f"What color is the {lowest} {names[0]}?", chart.lowest),
        "count": (f"How many {names[0]}s are there?", str(len(chart.marks))),
        "type": ("What type of chart is this: bar, pie or line?", chart.kind),
        "leftmost": ("What color is the leftmost bar?", chart.colors[0]),
        "rightmost": ("What color is the rightmost bar?", chart.colors[-1]),
    }[kind]


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One chart question; metric "relaxed"."""
    chart = make_chart(rng, partition)
    question, answer = _question(rng, chart)
    return ask(draw_chart(chart), lines(question, SHORT), answer, metric="relaxed", source=chart.source)


def make_caption(rng: Random, partition: Partition) -> tuple[Image.Image, str, str]:
    """A chart, a caption of at most 25 tokens, and its source."""
    chart = make_chart(rng, partition)
    count = len(chart.marks)
    if chart.kind == "line":
        trend = "rises" if chart.marks[-1].value > chart.marks[0].value else "falls"
        text = f"A line chart with {count} points. The {chart.colors[0]} line {trend}."
    elif chart.kind == "pie":
        text = f"A pie chart with {count} slices. Largest: {chart.highest}. Smallest: {chart.lowest}."
    else:
        order = ", ".join(chart.colors)
        text = f"{count} bars: {order}. Highest {chart.highest}, lowest {chart.lowest}."
    return draw_chart(chart), text, chart.source
