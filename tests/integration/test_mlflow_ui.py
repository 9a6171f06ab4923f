"""MLflow's own UI in headless Chromium: the layouts that runs and sweeps lay down open, with their charts drawn.

python -m pytest tests/integration/test_mlflow_ui.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from local_servers import free_ports, wait_until_it_answers

from components.core.events import RowScored
from components.tracking.charts import LOCAL_UI
from components.tracking.config import TrackingConfig, tracking_uri
from components.tracking.store import open_tracker
from components.tracking.sweep import open_sweep_tracker

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TASKS = ["chartqa", "docvqa"]

pytestmark = pytest.mark.browser


def learned(number: int, scores: list[float | None]) -> RowScored:
    return RowScored(
        tasks_learned=number,
        after=TASKS[number - 1],
        scores=dict(zip(TASKS, scores, strict=True)),
        routing_accuracy=None,
        slot_usage=None,
        train_s=1.0,
        evaluate_s=1.0,
        peak_memory_bytes=2**30,
        checkpoint_path=None,
    )


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Links of a stream's and of a sweep's view, on a server over a store that holds four trials."""
    storage = tmp_path_factory.mktemp("mlflow")
    sweep = open_sweep_tracker(
        TrackingConfig(),
        storage,
        "ranks",
        params={},
        fields=["method.rank", "method.slots_per_task"],
        metrics=["final_average"],
        resume_run_id=None,
    )
    stream: str | None = None
    for rank, slots in ((4, 4), (4, 8), (8, 4), (8, 8)):
        tags = {"stream": "mini", "stream_digest": "d", "method": "m", "backbone": "b", "seed": "0"}
        tags["mlflow.parentRunId"] = str(sweep.run_id)
        params = {"method": {"rank": rank, "slots_per_task": slots}}
        tracker = open_tracker(TrackingConfig(), storage, f"rank-{rank}-{slots}", params, tags, tasks=TASKS)
        tracker.handle(learned(1, [50.0 + rank, None]))
        tracker.handle(learned(2, [40.0 + slots, 60.0]))
        tracker.finish("FINISHED")
        stream = tracker.view
    sweep.finish("FINISHED")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking_uri(TrackingConfig(), storage)]
    with (storage / "ui.log").open("w") as log:
        server = subprocess.Popen([*command, "--port", str(port), "--workers", "1"], stdout=log, stderr=log)
    here = f"http://127.0.0.1:{port}"
    try:
        wait_until_it_answers(port, server, storage / "ui.log")
        links = {"stream": stream, "sweep": sweep.view}
        yield {name: str(link).replace(LOCAL_UI, here) for name, link in links.items()}
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize(
    ("view", "section", "cards", "kind"),
    [("stream", "Score of each task", 5, ".scatterlayer"), ("sweep", "What was varied", 6, ".contourlayer")],
)
def test_a_view_opens_with_its_charts(
    browser: Browser, views: dict[str, str], view: str, section: str, cards: int, kind: str
) -> None:
    """Four runs in both views; the charts of the first sections are drawn with something in them."""
    page = browser.new_page(viewport={"width": 1500, "height": 2400})
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(views[view])
    page.get_by_text(section, exact=True).wait_for(timeout=120_000)
    page.locator(f"svg.main-svg {kind} path").first.wait_for(state="attached", timeout=120_000)
    deadline = time.monotonic() + 60
    while page.locator(".js-plotly-plot").count() < cards and time.monotonic() < deadline:
        page.wait_for_timeout(500)
    assert page.locator(".js-plotly-plot").count() >= cards
    assert page.get_by_text("4 matching runs").is_visible()
    assert troubles == []
