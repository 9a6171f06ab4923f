"""Chart layouts for MLflow's UI, stored with the runs, so that nobody has to arrange charts by hand.

MLflow keeps a view that somebody shared as a tag of the experiment and opens it by a link with the tag's key. That form
is the UI's own and nowhere promised (seen in MLflow 3.17); a UI that no longer knows it shows its usual charts.
"""

from __future__ import annotations

import base64
import itertools
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import NAMESPACE_URL, uuid5

from components.core.naming import metric_names

TAG = "mlflow.sharedViewState."
LOCAL_UI = "http://127.0.0.1:5000"  # where `mlflow ui` answers
Card = dict[str, object]

# Metrics and their charts' titles; three charts fit beside each other.
FIGURES = {"final_average": "final average", "forgetting": "forgetting", "immediate_average": "immediate average"}
TIME = {"average_over_time": "average over time"}  # of streams without boundaries; elsewhere the chart is hidden
CAUSES = {
    "forgetting_routing_error": "by routing",
    "forgetting_weight_drift": "by drift",
    "forgetting_format_drift": "by format",
    "forgetting_knowledge_loss": "by knowledge",
}
ROUTING = {"routing_accuracy_mean": "routing accuracy", "slots/dead": "dead slots"}
COSTS = {
    "cost/train_s": "training, s",
    "cost/evaluate_s": "scoring, s",
    "cost/peak_memory_gib": "peak memory, GiB",
}


@dataclass(frozen=True, kw_only=True)
class View:
    """A layout by its key; `state` is what the UI reads."""

    key: str
    state: Mapping[str, object]

    @property
    def tag(self) -> tuple[str, str]:
        """The experiment's tag: compressed, since tags are short."""
        packed = zlib.compress(json.dumps(self.state, separators=(",", ":")).encode(), 9)
        return TAG + self.key, "deflate;" + base64.b64encode(packed).decode()


def view_link(uri: str, experiment_id: str, key: str) -> str:
    """The address of a view, on the server `uri` or on the one that `mlflow ui` starts."""
    base = uri.rstrip("/") if uri.startswith("http") else LOCAL_UI
    return f"{base}/#/experiments/{experiment_id}/runs?compareRunsMode=CHART&viewStateShareKey={key}"


def stream_view(stream: str, tasks: Sequence[str], *, digest: str, backbone: str) -> View:
    """Runs of one stream side by side: figures, scores by task, causes of forgetting, routing, matrices, costs.

    Of one stream's data (`digest`) and one backbone, as the key says: scores of others cannot be compared.
    """
    scores = {f"accuracy/{name}": name for name in metric_names(tasks).values()}
    sections = {
        "Over tasks learned": _lines(FIGURES | TIME),
        "Score of each task": _lines(scores),
        "Why it was forgotten": _lines(CAUSES),
        "Score matrices": [_image("score_matrix"), _image("score_matrix_oracle")],
        "Routing": [*_lines(ROUTING), _image("slot_usage")],
        "Costs": _bars(COSTS),
    }
    search = f"metrics.final_average >= 0 AND tags.stream_digest = '{digest}' AND tags.backbone = {_quoted(backbone)}"
    return _view(f"stream-{stream}-{digest[:8]}-{backbone}", search, sections)


def sweep_view(sweep_id: str, run_id: str, fields: Sequence[str], metrics: Sequence[str]) -> View:
    """A sweep's trials: parallel coordinates over what was varied, contours over its first two numbers, curves."""
    first, wanted = metrics[0], {name: name.replace("_", " ") for name in metrics}
    coordinates = {"selectedParams": list(fields), "selectedMetrics": list(metrics), "showAllRuns": True}
    over: list[Card] = [{"type": "PARALLEL", **coordinates}]
    for one, other in itertools.pairwise(fields[:2]):
        axes = {"xaxis": _axis(one, "PARAM"), "yaxis": _axis(other, "PARAM"), "zaxis": _axis(first, "METRIC")}
        over.append({"type": "CONTOUR", **axes})
    sections = {
        "What was varied": [*over, *_bars(wanted)],
        "Over tasks learned": _lines(wanted | FIGURES),
    }
    return _view(f"sweep-{sweep_id}", f"tags.`mlflow.parentRunId` = '{run_id}'", sections)


def _quoted(value: str) -> str:
    """A text in MLflow's search; it knows no escape, so one with both quotes keeps what stands before the second."""
    mark = '"' if "'" in value else "'"
    return f"{mark}{value.partition(mark)[0]}{mark}"


def _view(key: str, search: str, sections: Mapping[str, Sequence[Card]]) -> View:
    legal = metric_names([key])[key].replace(" ", "-")
    ids = {name: _uuid(legal, name) for name in sections}
    cards = [
        {
            **card,
            "uuid": _uuid(legal, name, str(number)),
            "metricSectionId": ids[name],
            "runsCountToCompare": 20,
            "deleted": False,
            "isGenerated": False,
        }
        for name, held in sections.items()
        for number, card in enumerate(held)
    ]
    listed = [
        {"uuid": ids[name], "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}
        for name in sections
    ]
    state = {
        "searchFilter": search,
        "orderByKey": "metrics.`final_average`",  # in the order of creation, trials would hide inside their sweep
        "orderByAsc": False,
        "compareRunCharts": cards,
        "compareRunSections": listed,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "runsHiddenMode": "SHOW_ALL",
    }
    return View(key=legal, state=state)


def _lines(metrics: Mapping[str, str]) -> list[Card]:
    return [
        {
            "type": "LINE",
            "metricKey": metric,
            "selectedMetricKeys": [metric],
            "displayName": title,
            "xAxisKey": "step",
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "lineSmoothness": 0,
            "displayPoints": True,
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
            "range": {},
            "yAxisKey": "metric",
            "yAxisExpressions": [],
        }
        for metric, title in metrics.items()
    ]


def _bars(metrics: Mapping[str, str]) -> list[Card]:
    return [
        {"type": "BAR", "metricKey": metric, "selectedMetricKeys": [metric], "displayName": title}
        for metric, title in metrics.items()
    ]


def _image(key: str) -> Card:
    return {"type": "IMAGE", "imageKeys": [key], "step": 0, "showRunParams": True, "displayName": key}


def _axis(key: str, kind: str) -> Card:
    return {"key": key, "type": kind}


def _uuid(*parts: str) -> str:
    """The same for the same card, so that laying a view down again changes nothing."""
    return str(uuid5(NAMESPACE_URL, "littoral/" + "/".join(parts)))
