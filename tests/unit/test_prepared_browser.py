"""The page of a preparation in headless Chromium: nothing goes across, on a desk and a phone, and nothing complains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from rich.console import Console

from pipelines.prepare import Prepare, prepare

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
NAME = "receipts-of-small-shops-and-larger-ones"


@pytest.fixture(scope="module")
def page_of_prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks with long names that share pictures and questions, and a row without its picture."""
    folder = tmp_path_factory.mktemp("prepared")
    Image.radial_gradient("L").save(folder / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a circle"}]
    names = ["a.png"] * 40 + ["a-picture-that-is-not-there.png"]
    items = [{"id": str(at), "image": name, "conversations": turns} for at, name in enumerate(names)]
    (folder / "rows.json").write_text(json.dumps(items))
    task = 'train = "rows.json"\ntest = "rows.json"\nimages = "."\nmetric = "exact"\nmax_new_tokens = 4\n'
    toml = "".join(f'[[task]]\nname = "{name}"\n{task}' for name in (NAME, "other"))
    (folder / "s.toml").write_text(f'name = "s"\n{toml}')
    command = Prepare(stream=str(folder / "s.toml"), out=folder / "out", max_broken=0.1)
    assert prepare(command, Console(quiet=True)) == 0
    return folder / "out" / "report.html"


@pytest.mark.parametrize("width", [1300, 390])
def test_nothing_goes_across(browser: Browser, page_of_prepared: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    troubles: list[str] = []
    page.on("console", lambda said: troubles.append(said.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(page_of_prepared.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    across = page.evaluate(
        "[...document.querySelectorAll('.scroll, .card')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    )
    assert (across, troubles) == (0, [])
    seen = page.inner_text("main")
    assert f"{NAME} train" in seen
    if width < 640:
        label = page.evaluate(
            "getComputedStyle(document.querySelector('td[data-label=\"with picture\"]'), '::before').content"
        )
        assert label == '"with picture"', "a card has the head of each cell"
    page.close()
