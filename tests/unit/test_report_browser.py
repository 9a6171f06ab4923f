"""The HTML report in headless Chromium, on a desk and a phone, light and dark: figures are drawn without complaint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from reported_runs import DOC, ICON, run_with_replies, three_runs

from components.methods.moelora import MoeLoraConfig
from components.reporting.comparison import against_baseline
from components.reporting.html import write_html
from components.reporting.tables import table_of
from components.runs.results import read_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NUM_CHARTS = 5  # the average, two tasks, two ways to split forgetting
WIDTHS = {"desktop": 1280, "phone": 390}

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
BASELINES = {"mini-coast-domain": "cf-router", "mini-coin": "moelora", "pocket-two-orders": "moelora"}
# Words of a table's head are set on no more lines than it has words, and so are a heat map's row labels.
LETTER_BY_LETTER = """cells => cells.filter(cell => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
  return lines.size > cell.textContent.trim().split(/\\s+/).length;
}).map(cell => cell.textContent)"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = three_runs(tmp_path_factory.mktemp("runs"))
    out_dir = tmp_path_factory.mktemp("html")
    write_html(runs, out_dir, overview=table_of(runs), generals=())
    return out_dir / "report.html"


def opened(browser: Browser, report: Path, width: int, theme: str) -> tuple[Page, list[str]]:
    """The page with its charts drawn, and what went wrong or was fetched."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)  # pyright: ignore
    troubles: list[str] = []
    page.on("console", lambda said: troubles.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith(("file:", "data:")) else troubles.append(sent.url))
    page.goto(report.as_uri())
    page.wait_for_selector(f"html[data-drawn='{NUM_CHARTS}']", timeout=120_000)
    return page, troubles


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
def test_figures_are_drawn_without_errors(browser: Browser, report: Path, device: str, theme: str) -> None:
    page, troubles = opened(browser, report, WIDTHS[device], theme)
    assert page.locator(".chart svg.main-svg").count() >= NUM_CHARTS
    assert page.locator("#curve-0 .scatterlayer .js-line").count() == 3
    assert page.locator("#curve-0 .errorbars path").count() == 5  # two, two, and joint learning's end
    for bar in page.locator("#split-repaired .barlayer .point path").all():
        box = bar.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 5
    for chart in page.locator(".chart").all():
        box = chart.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= WIDTHS[device]
        assert box["height"] > 100
    loaded = "images => images.every(image => image.complete && image.naturalWidth > 0)"
    page.locator("#gallery .card").last.scroll_into_view_if_needed()
    page.wait_for_function(f"({loaded})([...document.images])")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= WIDTHS[device], "the page scrolls sideways"
    ink = page.locator("#curve-0 .ytick text").first.evaluate("text => getComputedStyle(text).fill")
    assert ink == {"light": "rgb(28, 32, 38)", "dark": "rgb(230, 232, 235)"}[theme]
    assert troubles == []
    page.close()


def test_filters_and_lines_answer_to_the_keyboard(browser: Browser, report: Path) -> None:
    page, troubles = opened(browser, report, WIDTHS["phone"], "light")
    page.locator("#filters [name=kind]").select_option("format")
    assert page.locator("#gallery .card:visible").count() == 1
    assert page.locator("#filters output").text_content() == "1 of 4 rows shown"
    page.locator("#filters [name=line]").select_option(label="cf_router")
    assert page.locator("#gallery .card:visible").count() == 0
    page.locator("#filters [name=kind]").select_option("")
    assert page.locator("#gallery .loss:visible").count() == 2
    page.locator("[data-look='0']").focus()
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll('#curve-0 .scatterlayer .js-line').length === 2")
    assert page.locator("#split-repaired .barlayer .point").count() == 2, "lines are hidden from curves, not from bars"
    assert troubles == []
    page.close()


def test_paper_is_light_and_holds_the_charts(browser: Browser, report: Path, tmp_path: Path) -> None:
    page, troubles = opened(browser, report, WIDTHS["desktop"], "dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("getComputedStyle(document.querySelector('#curve-0 .ytick text')).fill === 'rgb(0, 0, 0)'")
    width = page.locator("#curve-0 svg.main-svg").first.evaluate("svg => svg.getBoundingClientRect().width")
    assert width == 660
    assert len(page.pdf(path=tmp_path / "report.pdf", format="A4")) > 20_000
    assert troubles == []
    page.close()


def test_tables_and_gallery_need_no_scripts(browser: Browser, report: Path) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(report.as_uri())
    assert page.locator("table.heat:visible").count() == 6  # three lines, one with the task known, two of routing
    assert page.locator("#gallery .card:visible").count() == 4
    assert not page.locator("#filters").is_visible()
    assert page.get_by_text("The charts need scripts.").is_visible()
    page.close()


@pytest.fixture(scope="module", params=sorted(BASELINES))
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page over a folder of the repository's records, with a comparison."""
    runs = [read_run(path) for path in sorted((RESULTS / request.param).glob("*.json"))]
    out_dir = tmp_path_factory.mktemp(request.param)
    compared = against_baseline(runs, BASELINES[request.param])
    write_html(runs, out_dir, overview=table_of(runs), generals=(), compared=compared)
    return out_dir / "report.html"


def test_the_main_tables_fit_a_desk_and_say_first_what_people_come_for(browser: Browser, recorded: Path) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(recorded.as_uri())
    wide = "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth).map(box => box.ariaLabel)"
    assert page.locator(".scroll:has(.stack)").count() >= 4
    assert page.locator(".scroll:has(.stack)").evaluate_all(wide) == []
    assert page.locator(".maps .scroll").evaluate_all(wide) == []
    heads = page.locator(".overview").first.locator("thead th").all_inner_texts()
    assert heads[:3] == ["method", "final average", "forgetting"]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 1300
    page.close()


def test_a_phone_shows_both_figures_of_every_method(browser: Browser, recorded: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(recorded.as_uri())
    lines = page.locator(".overview").first.locator("tbody tr").all()
    assert len(lines) >= 4
    for line in lines:
        name = line.locator("th").bounding_box()
        figures = [figure.bounding_box() for figure in line.locator("td.headline").all()]
        assert len(figures) == 2
        for box in (name, *figures):
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390
        assert figures[0] is not None
        assert figures[1] is not None
        assert figures[0]["y"] == figures[1]["y"], "side by side"
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    page.close()


@pytest.mark.parametrize("width", [1300, 390])
def test_routing_tables_of_many_slots_have_readable_labels(browser: Browser, tmp_path: Path, width: int) -> None:
    right = {(DOC, DOC): 12, (ICON, DOC): 8, (ICON, ICON): 4}
    runs = [
        read_run(run_with_replies(tmp_path, f"moe-{seed}", MoeLoraConfig(), right, seed=seed, num_slots=12))
        for seed in (0, 1)
    ]
    write_html(runs, tmp_path / "html", overview=table_of(runs), generals=())
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((tmp_path / "html" / "report.html").as_uri())
    tables = page.locator(".heat:has-text('slots')")
    titles = tables.locator("caption").all_inner_texts()
    assert [title.split(";")[0] for title in titles] == ["moelora: slots seed 0", "moelora: slots seed 1"]
    heads = tables.first.locator("thead th").all_inner_texts()
    assert [" ".join(head.split()) for head in heads[:3]] == ["rows of", "layer 0 expert 0", "layer 0 expert 1"]
    assert page.locator(".heat th").evaluate_all(LETTER_BY_LETTER) == []
    heights = tables.locator("tbody th").evaluate_all("labels => labels.map(label => label.clientHeight)")
    assert max(heights) < 60
    page.close()


def test_what_scrolls_is_shaded_at_its_edge(browser: Browser, tmp_path: Path) -> None:
    right = {(DOC, DOC): 12, (ICON, DOC): 8, (ICON, ICON): 4}
    run = read_run(run_with_replies(tmp_path, "moe", MoeLoraConfig(), right, num_slots=12))
    write_html([run], tmp_path / "html", overview=table_of([run]), generals=())
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto((tmp_path / "html" / "report.html").as_uri())
    page.wait_for_selector(".edge.more-right")
    edge = page.locator(".edge:has(.heat:has-text('slots'))")
    assert edge.evaluate("edge => edge.className") == "edge more-right"
    edge.locator(".scroll").evaluate("box => box.scrollTo(box.scrollWidth, 0)")
    page.wait_for_selector(".edge.more-left")
    assert edge.evaluate("edge => edge.className") == "edge more-left"
    page.close()
