"""ScienceQA in miniature: choices A to D about elements, animals and country facts; a quarter has no picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

from PIL import Image

from components.data.embedded import facts
from components.data.embedded.drawing import COLORS, INK, canvas, fit_text
from components.data.embedded.facts import Partition, Sample, ask, partition_of, sampledata
from components.data.embedded.mini_coast import chart
from components.data.embedded.mini_coast.icon import Icon, draw_single, icons
from components.data.embedded.mini_coast.prompts import lines
from components.data.embedded.mini_coin.prompts import LETTER, LETTERS

_KINDS = {"element": 30, "animal": 22, "chart": 23, "figures": 15, "continent": 10}  # the last two are text only

# Zoological classes of the animals among the emoji: our own labels. Animals that fit no class well are left out.
CLASSES: dict[str, str] = {
    "mammal": """badger bat bear beaver bison boar camel cat cow deer dog dolphin donkey elephant ewe fox giraffe goat
        gorilla hamster hedgehog horse kangaroo koala leopard lion llama mammoth monkey moose mouse orangutan otter ox
        panda pig poodle rabbit raccoon ram rat rhinoceros seal skunk sloth tiger whale wolf zebra""",
    "bird": "bird chicken dodo duck eagle flamingo goose owl parrot peacock penguin rooster swan turkey",
    "reptile": "crocodile lizard snake turtle sauropod",
    "insect": "ant beetle butterfly cockroach cricket fly mosquito",
    "fish": "fish shark",
    "crustacean": "crab lobster shrimp",
}
# Families of elements that exclude each other; the table's "metal" and "nonmetal" would overlap with these.
_FAMILIES = (
    "noble gas",
    "halogen",
    "alkali metal",
    "alkaline earth metal",
    "transition metal",
    "lanthanoid",
    "actinoid",
)
_TWO_CONTINENTS = ("Egypt", "Turkey")  # the table gives one, and the other may be among the choices
_CONTINENTS = ("Africa", "Americas", "Asia", "Europe", "Oceania")


def choices(rng: Random, answer: str, others: Sequence[str]) -> tuple[str, list[str]]:
    """The answer's letter and the lines "A. ..." with the answer and at most three of `others` among them."""
    wrong = [one for one in others if one != answer]
    offered = [answer, *rng.sample(wrong, min(3, len(wrong)))]
    rng.shuffle(offered)
    listed = [f"{letter}. {one}" for letter, one in zip(LETTERS, offered, strict=False)]
    return LETTERS[offered.index(answer)], listed


@cache
def elements(partition: Partition) -> tuple[dict[str, str], ...]:
    """Rows of the periodic table that belong to one partition."""
    return tuple(row for row in sampledata("elements.csv") if partition_of(_element_source(row)) == partition)


def _element_source(row: dict[str, str]) -> str:
    return f"bokeh/elements/{row['symbol']}"


@cache
def _continents(partition: Partition) -> dict[str, str]:
    """Country -> continent."""
    path = facts.package_dir("plotly", "plotly") / "package_data" / "datasets" / "gapminder.csv.gz"
    found = {row["country"]: row["continent"] for row in facts.read_csv(path) if row["country"] not in _TWO_CONTINENTS}
    return {name: value for name, value in found.items() if partition_of(_country_source(name)) == partition}


def _country_source(country: str) -> str:
    return f"plotly/gapminder/{country}"


@cache
def animals(partition: Partition) -> dict[str, tuple[Icon, ...]]:
    """Zoological class -> its emoji in one partition; classes without any are left out."""
    shown = {icon.name: icon for icon in icons(partition) if icon.kind == "animal"}
    groups = {name: tuple(shown[one] for one in listed.split() if one in shown) for name, listed in CLASSES.items()}
    return {name: group for name, group in groups.items() if group}


def draw_element(row: dict[str, str], color: str) -> Image.Image:
    """A box of the periodic table: atomic number, symbol, name, atomic mass."""
    image, pen = canvas((250, 250, 246))
    pen.rectangle((16, 10, 208, 214), fill=(255, 255, 255), outline=COLORS[color], width=8)
    fit_text(pen, (32, 24), row["atomic number"], width=90, size=30)
    fit_text(pen, (112, 104), row["symbol"], width=170, size=92, anchor="mm", color=COLORS[color])
    fit_text(pen, (112, 168), row["name"], width=170, size=26, anchor="mm")
    fit_text(pen, (112, 195), f"mass {row['atomic mass'].strip('[]')[:7]}", width=170, size=16, anchor="mm", color=INK)
    return image


def _element(rng: Random, partition: Partition) -> Sample:
    row = rng.choice(elements(partition))
    kind = rng.choice(("name", "number", "family") if row["metal"] in _FAMILIES else ("name", "number"))
    if kind == "family":
        question, answer, others = "Which family does this element belong to?", row["metal"], list(_FAMILIES)
    elif kind == "number":
        question, answer = "What is the atomic number of this element?", row["atomic number"]
        others = [one["atomic number"] for one in elements(partition)]
    else:
        question, answer = "Which element does the card show?", row["name"]
        others = [one["name"] for one in elements(partition)]
    image = draw_element(row, rng.choice([name for name in COLORS if name != "yellow"]))
    return _sample(rng, image, (question,), answer, others, _element_source(row))


def _animal(rng: Random, partition: Partition) -> Sample:
    groups = animals(partition)
    answer = rng.choice(sorted(groups))
    shown = rng.choice(groups[answer])
    question = "Which group does this animal belong to?"
    return _sample(rng, draw_single(rng, shown), (question,), answer, list(CLASSES), shown.source)


def _chart(rng: Random, partition: Partition) -> Sample:
    drawn = chart.make_chart(rng, partition, kind="bar")
    while len(drawn.marks) < 4:  # three choices would make A, B and C likelier than D
        drawn = chart.make_chart(rng, partition, kind="bar")
    most = rng.random() < 0.5
    answer = drawn.marks[drawn.colors.index(drawn.highest if most else drawn.lowest)].label
    question = f"Which bar of the chart is the {'highest' if most else 'lowest'}?"
    return _sample(
        rng, chart.draw_chart(drawn), (question,), answer, [mark.label for mark in drawn.marks], drawn.source
    )


def _figures(rng: Random, partition: Partition) -> Sample:
    """Four figures of a table in a context line, and which of them is the largest or smallest."""
    table = rng.choice([one for one in facts.chart_tables(partition) if not one.is_series])
    distinct = {chart.value_text(mark.value): mark for mark in table.marks}
    marks = rng.sample(list(distinct.values()), min(4, len(distinct)))
    most = rng.random() < 0.5
    answer = (max if most else min)(marks, key=lambda mark: mark.value).label
    listed = ", ".join(f"{mark.label} {chart.value_text(mark.value)}" for mark in marks)
    question = f"Which figure is the {'largest' if most else 'smallest'}?"
    source = ";".join(mark.source for mark in marks)
    return _sample(rng, None, (f"{table.title}: {listed}.", question), answer, [mark.label for mark in marks], source)


def _continent(rng: Random, partition: Partition) -> Sample:
    country = rng.choice(sorted(_continents(partition)))
    question = f"To which continent does {country} belong?"
    return _sample(rng, None, (question,), _continents(partition)[country], list(_CONTINENTS), _country_source(country))


def _sample(
    rng: Random, image: Image.Image | None, asked: Sequence[str], answer: str, others: Sequence[str], source: str
) -> Sample:
    letter, listed = choices(rng, answer, others)
    return ask(image, lines(*asked, *listed, LETTER), letter, metric="exact", source=source)


_MAKERS = {"element": _element, "animal": _animal, "chart": _chart, "figures": _figures, "continent": _continent}


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One question with lettered choices; metric "exact" on the letter."""
    kind = rng.choices(list(_KINDS), weights=list(_KINDS.values()))[0]
    return _MAKERS[kind](rng, partition)
