"""The HTML report over finished runs: its numbers are the matrices', and data cannot open it."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from finished_runs import TASKS
from plotly.offline import get_plotlyjs
from reported_runs import DOC, HOSTILE, ICON, three_runs

from components.core.errors import ConfigError
from components.evaluation.predictions import Prediction
from components.methods.base import MethodConfig
from components.methods.cf_router import CfRouterConfig
from components.methods.continual_llava import ContinualLlavaConfig
from components.methods.moelora import MoeLoraConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.methods.smolora import SmoloraConfig
from components.reporting.charts import COLOURS
from components.reporting.comparison import against_baseline
from components.reporting.export import latex_text
from components.reporting.facts import forgetting_parts
from components.reporting.gallery import CARDS, PICTURE_ROOM, drawn_evenly
from components.reporting.groups import grouped, named
from components.reporting.heatmap_table import STEPS, colours, contrast
from components.reporting.html import write_html
from components.reporting.routing import routing
from components.reporting.tables import general_tables, table_of
from components.runs.results import FinishedRun
from pipelines.report import Report

PAGES = {"light": "#ffffff", "dark": "#14171b"}  # backgrounds in base.css


class Page(HTMLParser):
    """Tags with their attributes, scripts' texts, and tables as (caption, rows of cell texts)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "table":
            self.tables.append(("", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._open[-1:]:
            self.scripts[-1] += data
        elif "caption" in self._open and "small" not in self._open:
            self.tables[-1] = (self.tables[-1][0] + data, self.tables[-1][1])
        elif {"td", "th"} & set(self._open):
            self.tables[-1][1][-1][-1] += data.strip()

    def table(self, caption: str) -> list[list[str]]:
        """The rows below the header of the table of that caption."""
        found = [rows for said, rows in self.tables if said.strip() == caption]
        assert len(found) == 1, [said for said, _ in self.tables]
        return found[0][1:]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[FinishedRun]:
    return three_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def out(runs: list[FinishedRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("html") / "new"
    compared = against_baseline(runs, "sequential-lora")
    written = write_html(runs, folder, overview=table_of(runs), generals=general_tables(runs), compared=compared)
    assert sorted(path.name for path in written) == sorted(path.name for path in folder.iterdir())
    return folder


@pytest.fixture(scope="module")
def text(out: Path) -> str:
    return (out / "report.html").read_text()


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_heat_maps_hold_the_matrices(page: Page) -> None:
    none = "not scored"
    assert page.table("sequential_lora") == [[DOC, "75.0", none, "75.0"], [ICON, "50.0", "25.0", "37.5"]]
    assert page.table("cf_router") == [[DOC, "75.0", none, "75.0"], [ICON, "62.5", "25.0", "43.8"]]
    assert page.table("cf_router, task known") == [[DOC, "75.0", none, "75.0"], [ICON, "68.8", "25.0", "46.9"]]
    assert page.table("joint") == [[DOC, none, none, none], [ICON, "81.2", "50.0", "65.6"]]


def test_the_parts_of_forgetting_add_up_to_it(page: Page, runs: list[FinishedRun]) -> None:
    """By hand: plain loses 25, of it 6.25 by form; routed loses 12.5, of it 6.25 by routing."""
    assert page.table("Points of forgetting and its parts") == [
        ["sequential_lora", "25.0", "", "", "6.2", "18.8"],
        ["cf_router", "12.5", "6.2", "6.2", "", ""],
        ["joint", "", "", "", "", ""],
    ]
    groups = named(grouped(runs))
    assert [sum(one.values()) for one in forgetting_parts(groups, "repaired")["`sequential_lora`"]] == [25.0]
    assert [sum(one.values()) for one in forgetting_parts(groups, "oracle")["`cf_router`"]] == [12.5]


def test_charts_hold_the_scores_and_their_intervals(page: Page) -> None:
    charts = {chart["id"]: chart["figure"] for chart in json.loads(page.scripts[0])}
    assert list(charts) == ["curve-0", "curve-1", "curve-2", "split-oracle", "split-repaired"]
    plain, routed, joint = charts["curve-0"]["data"]
    assert (plain["y"], routed["y"], joint["y"]) == ([75.0, 37.5], [75.0, 43.75], [65.625])
    assert all(low > 0 for low in plain["error_y"]["arrayminus"]), "12 of 16 rows: other rows may score otherwise"
    assert charts["curve-1"]["data"][0]["y"] == [75.0, 50.0]
    assert [bar["x"] for bar in charts["split-oracle"]["data"]] == [[6.25], [6.25]]
    places = [attributes for tag, attributes in page.tags if tag == "div" and attributes.get("id") in charts]
    assert all(place["role"] == "img" and "sequential_lora" in str(place["aria-label"]) for place in places[:3])


def test_the_gallery_shows_what_was_lost_and_why(page: Page, text: str) -> None:
    assert page.table("Rows lost, by run and kind") == [
        ["plain", "0", "0", "1", "3"],
        ["routed", "1", "1", "0", "0"],
    ]
    losses = [(one["data-line"], one["data-kinds"]) for one in page.all("section") if "data-line" in one]
    plain, routed = "`sequential_lora`", "`cf_router`"
    assert losses == [
        (plain, "format"),
        (plain, "knowledge"),
        (plain, "knowledge"),
        (routed, "routing error"),
        (plain, "knowledge"),
        (routed, "weight drift"),
    ]
    assert len([one for one in page.all("article") if one.get("data-task") == DOC]) == 4
    pictures = page.all("img")
    assert len(pictures) == 4, "one for each row, however many runs lost it"
    assert all(str(one["src"]).startswith("data:image/jpeg;base64,") and one["alt"] for one in pictures)
    assert "a record has none): recorded." in text
    replies = [rows for said, rows in page.tables if said == "Replies of routed after each task"]
    assert [row[0] for row in replies[0]] == [f"after {task}" for task in TASKS]
    assert replies[0][1][1].startswith("✗wrong:")


def test_routing_is_told(page: Page, text: str) -> None:
    assert page.table("cf_router: routed to") == [[DOC, "93.8", "6.2"], [ICON, "0.0", "100.0"]]
    assert page.table("cf_router: slots") == [[DOC, "100.0", "0.0"], [ICON, "0.0", "100.0"]]
    assert "seed 0; percent of the task" in text
    heads = [rows[0] for said, rows in page.tables if said.strip() == "cf_router: slots"]
    assert heads == [["rows of", DOC, ICON]], "a branch is named by its task, not by its number"
    assert f"right with the task known: {DOC} 1 of 16, {ICON} 0 of 16." in text


@pytest.mark.parametrize(("alike", "shown"), [(16, True), (17, True), (40, False)])
def test_many_slots_that_serve_alike_make_no_table(runs: list[FinishedRun], alike: int, shown: bool) -> None:
    """Every layer's blocks under one numbering: 16 columns of next to nothing told nobody anything."""
    reply = Prediction(after=ICON, task=ICON, sample_id="0", score=1.0, slots=tuple(range(alike)))
    found = routing("line", runs[0], [reply])
    assert found is not None
    assert (found.slots is not None) == shown


@pytest.mark.parametrize(
    ("method", "slot", "name"),
    [
        (ContinualLlavaConfig(slots_per_task=4, top_m=2), 5, "iconqa 2"),
        (ContinualLlavaConfig(pool="shared"), 5, "slot 5"),
        (MoeLoraConfig(num_experts=4), 9, "layer 2 expert 1"),
        (SmoloraConfig(blocks=4), 13, "layer 1 IF block 1"),
        (CfRouterConfig(), 1, "iconqa"),
        (SequentialLoraConfig(), 1, "slot 1"),
    ],
)
def test_slots_have_names(method: MethodConfig, slot: int, name: str) -> None:
    assert method.slot_name(slot, TASKS) == name


def test_sections_with_nothing_in_them_are_not_there(runs: list[FinishedRun], tmp_path: Path) -> None:
    """A record of joint learning forgets nothing, routes nothing, holds no replies, and differs from nobody."""
    write_html(runs[2:], tmp_path, overview=table_of(runs[2:]), generals=())
    alone = Page((tmp_path / "report.html").read_text())
    sections = [str(one["href"]) for one in alone.all("a") if str(one["href"]) != "#main"]
    assert sections == ["#overview", "#matrices", "#curves", "#costs"]
    assert [one["id"] for one in alone.all("h2")] == [section[1:] for section in sections]


def test_data_cannot_open_the_page(page: Page, text: str) -> None:
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert "\\x1b[2J \\u202e" in text
    own = text
    for script in page.scripts[1:]:  # ours and Plotly's
        own = own.replace(script, "")
    assert not {"\x1b", "\u202e"} & set(own)
    assert len(page.scripts) == 3
    policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in page.scripts[1:]]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_nothing_is_fetched(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "action", "data"):
            assert str(attributes.get(name, "#")).startswith(("#", "data:image/jpeg;base64,"))
    targets = {str(attributes["id"]) for _, attributes in page.tags if "id" in attributes}
    assert {str(one["href"])[1:] for one in page.all("a")} <= targets


def test_the_page_stays_small(text: str) -> None:
    assert len(text) < len(get_plotlyjs()) + PICTURE_ROOM
    long, short = [("long", str(number)) for number in range(10 * CARDS)], [("short", "1")]
    drawn = drawn_evenly([long, short], ["short", "long"])
    assert len(drawn) == CARDS
    assert drawn[0] == ("short", "1"), "a long task does not hide the others"


def test_files_for_papers_and_spreadsheets(out: Path) -> None:
    tex = (out / "table.tex").read_text()
    assert tex.count(r"\\") == 6  # a header, two controls, three lines; zero-shot was not measured
    assert r"\texttt{sequential\_lora} & 75.0 $\rightarrow$ 50.0 & 25.0" in tex
    assert latex_text("50 % of a_b <- {x} \\ ~^#&$") == (
        r"50 \% of a\_b \textless{}- \{x\} \textbackslash{} \textasciitilde{}\textasciicircum{}\#\&\$"
    )
    assert (out / "table.md").read_text().startswith(f"| method | {DOC} | {ICON} |")
    with (out / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    found = {(row["run"], row["variant"], row["after"], row["task"]): float(row["score"]) for row in cells}
    assert found["plain", "scores", ICON, DOC] == 50.0
    assert found["routed", "oracle", ICON, DOC] == 68.75
    with (out / "items.csv").open() as file:
        items = [
            row for row in csv.DictReader(file) if (row["run"], row["after"], row["task"]) == ("routed", ICON, DOC)
        ]
    assert sum(float(row["score"]) for row in items) == 10
    assert [row["row"] for row in items if row["oracle_score"] != row["score"]] == ["10"]
    with (out / "figures.csv").open() as file:
        figures = {(row["run"], row["figure"]): float(row["value"]) for row in csv.DictReader(file)}
    assert figures["plain", "forgetting_format_drift"] == 6.25
    assert figures["recorded", "final_average"] == 65.625


def test_differing_settings_are_marked(page: Page) -> None:
    settings = next(rows for _, rows in page.tables if rows[0][0] == "setting")
    assert settings[0][1:] == ["plain", "routed", "recorded"]
    assert ["method.name", "sequential_lora", "cf_router", "joint"] in settings
    assert not any(row[0].startswith(("tracking", "storage", "run_id")) for row in settings)


def test_a_comparison_stands_in_the_page(page: Page, text: str) -> None:
    assert page.table("Differences on the same seeds and test rows")[0][0] == "sequential_lora"
    assert "Intervals are 95 %, over test rows and seeds." in text


@pytest.mark.parametrize("theme", PAGES)
def test_colours_are_readable(theme: str) -> None:
    """WCAG 2.2: 4.5 for text, 3 for graphics."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert len(colours(theme)) == STEPS + 1
    assert min(contrast(background, ink) for background, ink in colours(theme)) >= 4.5
    assert min(contrast(colour, PAGES[theme]) for colour in COLOURS) >= 3
    css = (Path(__file__).parents[2] / "components" / "data" / "quality" / "pages" / "base.css").read_text()
    assert f"--page: {PAGES[theme]}" in css


def test_what_cannot_be_shown_is_one_sentence(runs: list[FinishedRun], tmp_path: Path) -> None:
    overview, other = table_of(runs), [replace(run, stream_digest="0" * 64) for run in runs]
    with pytest.raises(ConfigError, match="plain was scored on other data"):
        write_html(other, tmp_path, overview=overview, generals=())
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="give another folder to --html"):
        write_html(runs, tmp_path / "file", overview=overview, generals=())
    with pytest.raises(ConfigError, match="--forecast and --html were given together"):
        Report(runs=(), forecast=True, html=tmp_path)
    assert Report(runs=(), baseline="s0", html=tmp_path).baseline == "s0"
