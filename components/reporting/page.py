"""Finished runs as one HTML page in one file, the charts' script included; nothing is loaded from elsewhere.

Texts come from models and unchecked data: they are escaped and cut, pictures are copies that
components/data/quality/thumbnails.py made, and the page allows its browser to run the two scripts whose digests it
names, and to fetch nothing. Without scripts, all tables and the gallery are there; only charts and filters are not.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from components.core.visible import visible
from components.data.quality.report_page import PAGES, page_environment
from components.data.tasks import TaskStream
from components.evaluation.forgetting import SPLITS
from components.evaluation.predictions import Prediction
from components.reporting import facts
from components.reporting.charts import PageChart, curve_chart, looks, split_chart
from components.reporting.curves import Curves, curves
from components.reporting.decisions import decision_tables
from components.reporting.gallery import gallery
from components.reporting.groups import Groups
from components.reporting.heatmap_table import SCALES, HeatMap, colours, score_map
from components.reporting.replies import KINDS, UNKNOWN_KIND
from components.reporting.routing import routing
from components.reporting.summary import summary_sentences
from components.statistics.contributions import ItemScores

_FOLDER = Path(__file__).with_name("pages")
_SPLIT_TITLES = {"oracle": "By routing error and weight drift", "repaired": "By format and knowledge"}

# The columns that matter most: bold, and large in a phone's cards.
HEADLINE = ("final average", "forgetting", "final average minus baseline", "forgetting minus baseline")


def page(
    groups: Groups,
    replies: dict[str, list[Prediction]],
    scores: Mapping[str, ItemScores],
    stream: TaskStream | None,
    **tables: Sequence[object] | None,
) -> str:
    """The whole page; raises `ConfigError` when the stream is not the one that the runs were scored on.

    `replies` and `scores` of rows are by run id, `stream` holds the pictures of rows (None where no run has replies).
    `tables` go to the template as they are: `overview` and `generals`, `compared` (header, lines and verdicts against
    a baseline, or None), names of the `files` beside the page, and `orders`: pages of other orders and their tasks.
    """
    runs = [run for group in groups.values() for run in group]
    drawn = curves(groups, scores)
    curve_charts = [(curve_chart(number, one, list(groups)), one) for number, one in enumerate(drawn)]
    split_charts = _split_charts(groups)
    lost = gallery(groups, replies, stream)
    kinds = [kind for kind in (*KINDS, UNKNOWN_KIND) if any(kind in counts for counts in lost.counts.values())]
    scripts = [get_plotlyjs(), (_FOLDER / "comparison.js").read_text(encoding="utf-8")]
    environment = page_environment(_FOLDER, PAGES)
    environment.filters |= {"coded": _coded, "pieces": _pieces}
    found = [routing(line, run, replies[str(run.config.run_id)]) for line, group in groups.items() for run in group]
    forgetting = facts.forgetting_lines(groups)
    return environment.get_template("comparison.html").render(
        headline=HEADLINE,
        stream=facts.stream_title(runs[0]),
        groups=groups,
        runs=runs,
        glance=summary_sentences(groups, drawn[0]),
        maps=_score_maps(groups),
        looks=looks(list(groups)),
        curve_charts=curve_charts,
        without_intervals=_without_intervals(drawn),
        split_charts=split_charts,
        forgetting=forgetting if any(any(line[1:]) for line in forgetting) else [],
        decisions=decision_tables(groups),
        routings=[one for one in found if one is not None],
        gallery=lost,
        loss_kinds=kinds,
        loss_lines=[[run_id, *(str(counts.get(kind, 0)) for kind in kinds)] for run_id, counts in lost.counts.items()],
        costs=facts.cost_lines(groups),
        differences=facts.published_differences(groups),
        settings=facts.differing_settings(groups),
        own_options=facts.own_options(groups),
        colours={theme: colours(theme) for theme in SCALES},
        charts=[{"id": chart.id, "figure": chart.figure} for chart, _ in (*curve_charts, *split_charts)],
        scripts=[Markup(script) for script in scripts],  # ours and Plotly's: nothing of the data is in them
        script_hashes=Markup(" ".join(map(_digest, scripts))),
        **tables,
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
    parts = {variant: facts.forgetting_parts(groups, variant) for variant in SPLITS}
    return [(split_chart(variant, one), _SPLIT_TITLES[variant]) for variant, one in parts.items() if one]


def _without_intervals(drawn: Sequence[Curves]) -> list[str]:
    return list(
        dict.fromkeys(point.line.replace("`", "") for one in drawn for point in one.points if point.interval is None)
    )


def _coded(text: str) -> Markup:
    """The text escaped, with text in backticks as code, and arrows as such; names of options may break at _."""
    parts = [escape(part) for part in visible(str(text)).replace("->", "→").split("`")]
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
