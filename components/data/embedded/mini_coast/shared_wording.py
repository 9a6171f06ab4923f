"""Four tasks that ask in the same words and differ in their pictures only: charts, cards, icons and scans.

Row i of every task has the same instruction (`GeneratedTask.draws`), so no rule over the instruction alone can tell the
tasks apart: any such router is right for one row in four. What an instruction asks for depends on the picture. "The
kind" is the type of a chart, the title of a card, what an icon shows, how a scan was taken; "the mark" is the colour
of the tallest bar, of a card's header, of an icon, and the plane of a brain.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal

from PIL import Image

from components.data.embedded.facts import Maker, Partition, Sample, ask
from components.data.embedded.mini_coast import chart, document, icon, medical
from components.data.embedded.mini_coast.prompts import SHORT, lines

Asked = Literal["kind", "mark"]
WORDINGS: dict[Asked, tuple[str, ...]] = {
    "kind": (
        "What kind of picture is this?",
        "Which kind is shown here?",
        "Of what kind is this picture?",
        "Name the kind of this picture.",
    ),
    "mark": (
        "What marks this picture?",
        "Which mark does this picture have?",
        "By what is this picture marked?",
        "Name the mark of this picture.",
    ),
}
_CHARTS = ("bar", "pie", "line")


Draw = Callable[[Random, Partition, Asked], tuple[Image.Image, str, str]]


def _asking(draw: Draw) -> Maker:
    """What makes samples of the pictures, answers and sources of `draw`; metric "exact"."""

    def make(rng: Random, partition: Partition) -> Sample:
        # the instruction first: what is drawn from `rng` afterwards differs from task to task
        asked: Asked = rng.choice(("kind", "mark"))
        instruction = lines(rng.choice(WORDINGS[asked]), SHORT)
        image, answer, source = draw(rng, partition, asked)
        return ask(image, instruction, answer, metric="exact", source=source)

    return make


def _chart(rng: Random, partition: Partition, asked: Asked) -> tuple[Image.Image, str, str]:
    """The type of a chart, or the colour of its highest bar, largest slice or only line."""
    drawn = chart.make_chart(rng, partition, kind=rng.choice(_CHARTS))
    color = drawn.colors[0] if drawn.kind == "line" else drawn.highest
    return chart.draw_chart(drawn), drawn.kind if asked == "kind" else color, drawn.source


def _card(rng: Random, partition: Partition, asked: Asked) -> tuple[Image.Image, str, str]:
    """The title of a card, or the colour of its header."""
    record, color = document.make_card(rng, partition)
    return document.draw_card(rng, record, color), record.title if asked == "kind" else color, record.source


def _icon(rng: Random, partition: Partition, asked: Asked) -> tuple[Image.Image, str, str]:
    """The kind of thing an icon shows, or its colour."""
    one = icon.pick_distinct(rng, partition, 1, "kind" if asked == "kind" else "color")[0]
    answer = one.kind if asked == "kind" else one.color
    assert answer is not None  # pick_distinct leaves out icons without a colour
    return icon.draw_single(rng, one), answer, one.source


def _scan(rng: Random, partition: Partition, asked: Asked) -> tuple[Image.Image, str, str]:
    """How a scan was taken, or the plane a brain is cut in."""
    scan, answer = medical.pick_scan(rng, partition, "modality" if asked == "kind" else "plane")
    return medical.draw_scan(rng, scan), answer, scan.source


make_charts, make_cards, make_icons, make_scans = map(_asking, (_chart, _card, _icon, _scan))
