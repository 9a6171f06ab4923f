"""The HTML report in headless Chromium, on a desk and a phone, light and dark: figures are drawn without complaint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from reported_runs import three_runs

from pipelines.report import table_of
from pipelines.report_html import write_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NUM_CHARTS = 5  # the average, two tasks, two ways to split forgetting
WIDTHS = {"desktop": 1280, "phone": 390}

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
