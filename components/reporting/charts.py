"""Charts of the HTML report, as Plotly figures that the page's script draws.

Why Plotly: it works with pointer and touch, draws SVG, which prints sharply and follows the page's light and dark
colours, needs neither network nor `eval` (the page forbids both), and is well maintained. Its script is 4.8 MB, written
into the page once. Considered: Bokeh (1 MB, but a canvas, which prints as pixels and ignores the page's theme),
Vega-Lite through Altair (small, but it takes a second package with a compiled renderer to write its script, and `eval`
or a slower interpreter), matplotlib's SVG (no script, but no values on touch). Whatever has no axis is a table
(components/reporting/heatmap_table.py), and every chart's numbers are in a table below it.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from components.core.visible import visible
from components.evaluation.forgetting import SPLITS
from components.reporting.curves import Curves
from components.statistics.mean_std import MeanStd

# Told apart from white and from the dark page by 3 : 1 or more; repeated with another dash.
COLOURS = ("#0072b2", "#c4520a", "#008a64", "#b0568f", "#957000", "#7b61d6", "#6b7785")
DASHES = (("solid", ""), ("dash", "6 3"), ("dot", "2 2"))
SYMBOLS = (("circle", "●"), ("square", "■"), ("diamond", "◆"), ("triangle-up", "▲"), ("triangle-down", "▼"))
_LABEL = 18  # characters of a bar's name on one line
_PARTS = {  # figure -> name, colour, pattern
    "forgetting_routing_error": ("routing error", COLOURS[1], "/"),
    "forgetting_weight_drift": ("weight drift", COLOURS[0], ""),
    "forgetting_format_drift": ("format", COLOURS[4], "/"),
    "forgetting_knowledge_loss": ("knowledge", COLOURS[2], ""),
}

Plain = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class PageChart:
    """A figure under the id of its element; `says` describes it to screen readers."""

    id: str
    says: str
    figure: Plain


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colour, dash and marker of one line in every chart and in the legend above them."""

    number: int
    line: str
    colour: str
    dash: tuple[str, str]  # Plotly's name and SVG's dash array
    symbol: tuple[str, str]  # Plotly's name and the character


def looks(lines: Sequence[str]) -> list[Look]:
    """One look for each line: another dash when the colours are used up."""
    return [
        Look(
            number=number,
            line=line.replace("`", ""),
            colour=COLOURS[number % len(COLOURS)],
            dash=DASHES[number // len(COLOURS) % len(DASHES)],
            symbol=SYMBOLS[number % len(SYMBOLS)],
        )
        for number, line in enumerate(lines)
    ]


def curve_chart(number: int, curves: Curves, lines: Sequence[str]) -> PageChart:
    """Lines over the stream with error bars, slightly apart so that equal scores are seen; traces by `looks`."""
    figure = go.Figure(layout=_layout())
    apart = min(0.06, 0.5 / len(lines))
    for look, line in zip(looks(lines), lines, strict=True):
        points = curves.of(line)
        known = [points[after] for after in curves.after if after in points]
        shift = (look.number - (len(lines) - 1) / 2) * apart
        figure.add_scatter(
            x=[curves.after.index(point.after) + shift for point in known],
            y=[point.value for point in known],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [point.interval.high - point.value if point.interval else 0.0 for point in known],
                "arrayminus": [point.value - point.interval.low if point.interval else 0.0 for point in known],
                "thickness": 1,
                "width": 2,
            },
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash[0], "width": 2},
            marker={"symbol": look.symbol[0], "size": 8},
            text=[_plain(f"{look.line}, after {point.after}: {point.text}") for point in known],
            hovertemplate="%{text}<extra></extra>",
            name=_plain(look.line),
            meta=look.number,
            showlegend=False,
        )
    figure.update_xaxes(
        tickvals=list(range(len(curves.after))),
        ticktext=[_plain(after) for after in curves.after],
        range=[-0.35, len(curves.after) - 0.65],
        title="after",
        zeroline=False,
    )
    figure.update_yaxes(range=[0, 102], title="score", dtick=20)
    last = [f"{point.line.replace('`', '')} {point.text}" for point in curves.points if point.after == curves.after[-1]]
    says = f"Line chart, {curves.title}, after each task. After {curves.after[-1]}: {'; '.join(last)}."
    return PageChart(id=f"curve-{number}", says=says, figure=figure.to_plotly_json())


def split_chart(variant: str, parts: Mapping[str, Sequence[Mapping[str, float]]]) -> PageChart:
    """Bars of forgetting's two parts under `variant`, one bar a line; `parts` by line, of each seed."""
    figure = go.Figure(layout=_layout(legend=True))
    names = {line: "<br>".join(map(_plain, textwrap.wrap(line.replace("`", ""), _LABEL))) for line in parts}
    for part in SPLITS[variant]:
        name, colour, pattern = _PARTS[part]
        means = [MeanStd.of([one[part] for one in seeds]).mean for seeds in parts.values()]
        figure.add_bar(
            y=list(names.values()),
            x=means,
            orientation="h",
            name=name,
            marker={
                "color": colour,
                "pattern": {"shape": pattern, "fgcolor": "#ffffff", "fillmode": "overlay", "solidity": 0.25},
            },
            hovertemplate=f"%{{y}}: {name} %{{x:.1f}} points<extra></extra>",
        )
    rows = sum(name.count("<br>") + 1 for name in names.values())
    figure.update_layout(barmode="relative", height=120 + 24 * max(rows, 2), bargap=0.35)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(title="points of forgetting", zeroline=True)
    said = "; ".join(f"{line.replace('`', '')}: {words(seeds, variant)}" for line, seeds in parts.items())
    return PageChart(id=f"split-{variant}", says=f"Bar chart of forgetting. {said}.", figure=figure.to_plotly_json())


def words(seeds: Sequence[Mapping[str, float]], variant: str) -> str:
    """The two parts of one line as text."""
    return ", ".join(f"{_PARTS[part][0]} {MeanStd.of([one[part] for one in seeds])}" for part in SPLITS[variant])


def _layout(*, legend: bool = False) -> go.Layout:
    """A layout without Plotly's own template: the page's script sets the theme's colours."""
    return go.Layout(
        template=go.layout.Template(),
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        height=300,
        dragmode=False,
        hovermode="closest",
        font={"size": 13},
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        xaxis={"automargin": True, "fixedrange": True, "showgrid": True},
        yaxis={"automargin": True, "fixedrange": True},
    )


def _plain(text: str) -> str:
    """The text escaped: Plotly interprets a few tags, and data must not bring any."""
    return html.escape(visible(text), quote=False)
