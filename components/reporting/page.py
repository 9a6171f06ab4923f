"""Finished runs as one HTML page in one file, the charts' script included; nothing is loaded from elsewhere.

Texts come from models and unchecked data: they are escaped and cut, pictures are copies that
components/data/quality/thumbnails.py made, and the page allows its browser to run the two scripts whose digests it
names, and to fetch nothing. Without scripts, all tables and the gallery are there; only charts and filters are not.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from components.data.quality.report_page import PAGES, page_environment
from components.data.tasks import TaskStream
from components.evaluation.forgetting import SPLITS
from components.evaluation.predictions import Prediction
from components.reporting.charts import PageChart, curve_chart, looks, split_chart
from components.reporting.curves import Curves, curves
from components.reporting.decisions import decision_tables
from components.reporting.facts import (
    cost_lines,
    differing_settings,
    forgetting_lines,
    forgetting_parts,
    own_options,
    published_differences,
    stream_title,
)
from components.reporting.gallery import Gallery, gallery
from components.reporting.groups import Groups, Line, Table
from components.reporting.heatmap_table import HeatMap, heat_css, score_map
from components.reporting.replies import KINDS, UNKNOWN_KIND, row_scores
from components.reporting.routing import routing
from components.reporting.summary import summary_sentences

_FOLDER = Path(__file__).with_name("pages")
SECTIONS = {
    "overview": "Overview",
    "matrices": "Score matrices",
    "curves": "Curves",
    "forgetting": "Forgetting",
    "routing": "Routing",
    "lost": "Learned then lost",
    "costs": "Costs",
    "published": "Published results",
    "settings": "Settings",
}
ABSENT = {  # why a section is missing
    "forgetting": "Forgetting: no run here learned two tasks one after another.",
    "routing": "Routing: no run here routes and has its replies in its folder; records have none.",
    "lost": "Learned then lost: no run here has its replies in its folder; records have none.",
    "published": "Published results: there are none for these methods on this stream.",
    "settings": "Settings: none differs between these runs.",
}
_SPLIT_TITLES = {"oracle": "By routing error and weight drift", "repaired": "By format and knowledge"}

# The columns that matter most: bold, and large in a phone's cards.
HEADLINE = ("final average", "forgetting", "final average minus baseline", "forgetting minus baseline")


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a page is made of. `replies` are those of `replies_of` by run id, empty for records."""

    groups: Groups
    stream: TaskStream | None  # for the pictures of rows; None where no run has replies
    replies: dict[str, list[Prediction]]
    overview: Table
    generals: tuple[Table, ...] = ()  # general ability, where it was measured
    compared: tuple[Line, list[Line], list[str]] | None = None  # against a baseline: header, lines, verdicts
    files: tuple[str, ...] = ()  # names of the files beside the page
    orders: tuple[tuple[str, str], ...] = ()  # of pages of the same runs in other orders of tasks: name, order


def page(content: Content) -> str:
    """The whole page; raises `ConfigError` when the stream is not the one that the runs were scored on."""
    groups, replies = content.groups, content.replies
    lines, runs = list(groups), [run for group in groups.values() for run in group]
    scores = {str(run.config.run_id): row_scores(run, replies[str(run.config.run_id)]) for run in runs}
    drawn = curves(groups, scores)
    curve_charts = [(curve_chart(number, one, lines), one) for number, one in enumerate(drawn)]
    split_charts = _split_charts(groups)
    lost = gallery(groups, replies, content.stream)
    kinds = [kind for kind in (*KINDS, UNKNOWN_KIND) if any(kind in counts for counts in lost.counts.values())]
    charts = [chart for chart, _ in (*curve_charts, *split_charts)]
    scripts = [get_plotlyjs(), (_FOLDER / "comparison.js").read_text(encoding="utf-8")]
    environment = page_environment(_FOLDER, PAGES)
    environment.filters |= {"coded": _coded, "pieces": _pieces}
    found = [routing(line, run, replies[str(run.config.run_id)]) for line, group in groups.items() for run in group]
    routings = [one for one in found if one is not None]
    published = published_differences(groups)
    settings, own = differing_settings(groups), own_options(groups)
    forgetting, decisions = forgetting_lines(groups), decision_tables(groups)
    known = {
        "overview": True,
        "matrices": True,
        "curves": True,
        "forgetting": any(any(line[1:]) for line in forgetting),
        "routing": bool(routings or decisions),
        "lost": bool(lost.counts),
        "costs": True,
        "published": bool(published),
        "settings": bool(settings or own),
    }
    return environment.get_template("comparison.html").render(
        sections=[(section, SECTIONS[section]) for section, there in known.items() if there],
        absent=[ABSENT[section] for section, there in known.items() if not there],
        headline=HEADLINE,
        stream=stream_title(runs[0]),
        backbone=runs[0].config.backbone.name,
        digest=runs[0].stream_digest[:12],
        tasks=runs[0].matrix.tasks,
        num_runs=len(runs),
        run_ids=[str(run.config.run_id) for run in runs],
        lines=lines,
        line_counts={line: len(group) for line, group in groups.items()},
        glance=summary_sentences(groups, drawn[0]),
        overview=content.overview,
        generals=content.generals,
        compared=content.compared,
        maps=_score_maps(groups),
        looks=looks(lines),
        curve_charts=curve_charts,
        without_intervals=_without_intervals(drawn),
        split_charts=split_charts,
        forgetting=forgetting if known["forgetting"] else [],
        decisions=decisions,
        routings=routings,
        gallery=lost,
        loss_kinds=kinds,
        loss_lines=_loss_lines(lost, kinds),
        costs=cost_lines(groups),
        differences=published,
        settings=settings,
        own_options=own,
        files=content.files,
        orders=content.orders,
        heat_css=heat_css(),
        charts=[{"id": chart.id, "figure": chart.figure} for chart in charts],
        scripts=[Markup(script) for script in scripts],  # ours and Plotly's: nothing of the data is in them
        script_hashes=Markup(" ".join(map(_digest, scripts))),
    )


def _score_maps(groups: Groups) -> list[HeatMap]:
    """One map a line; a second one with the task known where that changes a score after a learned task."""
    maps: list[HeatMap] = []
    for line, group in groups.items():
        title = line.replace("`", "")
        maps.append(score_map(title, [run.matrix for run in group]))
        oracles = [run.oracle for run in group if run.oracle is not None]
        if oracles and any(run.oracle is not None and run.oracle.rows[-1] != run.matrix.rows[-1] for run in group):
            maps.append(score_map(f"{title}, task known", oracles))
    return maps


def _split_charts(groups: Groups) -> list[tuple[PageChart, str]]:
    parts = {variant: forgetting_parts(groups, variant) for variant in SPLITS}
    return [(split_chart(variant, one), _SPLIT_TITLES[variant]) for variant, one in parts.items() if one]


def _without_intervals(drawn: Sequence[Curves]) -> list[str]:
    return list(
        dict.fromkeys(point.line.replace("`", "") for one in drawn for point in one.points if point.interval is None)
    )


def _loss_lines(lost: Gallery, kinds: Sequence[str]) -> list[Line]:
    return [[run_id, *(str(counts.get(kind, 0)) for kind in kinds)] for run_id, counts in lost.counts.items()]


def _coded(text: str) -> Markup:
    """The text escaped, with text in backticks as code, and arrows as such; names of options may break at _."""
    parts = [escape(part) for part in str(text).replace("->", "→").split("`")]
    closed = len(parts) % 2 == 1
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if closed and at % 2 else part.replace("_", Markup("_<wbr>"))
        for at, part in enumerate(parts)
    )


def _pieces(text: str) -> Markup:
    """`_coded`; a cell of figures may break before an arrow or an interval, and nowhere else."""
    parts = re.split(r" (?=->|\[)", str(text))
    if len(parts) == 1 and "±" not in parts[0]:
        return _coded(text)
    return Markup(" ").join(Markup('<span class="piece">{}</span>').format(_coded(part)) for part in parts)


def _digest(script: str) -> str:
    """The script's digest as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
