"""The tables of recorded runs, in the README and in docs/results, are what report.py prints from the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.runs.results import read_run
from components.tracking.config import TrackingConfig
from pipelines.report import group_lines, grouped, markdown, require_comparable

ROOT = Path(__file__).resolve().parents[2]
STREAMS = sorted(path for path in (ROOT / "docs" / "results").iterdir() if path.is_dir())


@pytest.mark.parametrize("stream", STREAMS, ids=lambda folder: folder.name)
def test_a_page_holds_the_table_of_the_records(stream: Path) -> None:
    runs = [read_run(path) for path in sorted(stream.glob("*.json"))]
    require_comparable(runs)
    pages = [(ROOT / page).read_text().splitlines() for page in ("README.md", "docs/results/README.md")]
    lines = [line for group in grouped(runs) for line in group_lines(group)]
    assert len(lines) >= len({run.config.method.name for run in runs}) > 0
    assert any(set(markdown([], lines)[2:]) <= set(page) for page in pages)


@pytest.mark.parametrize("stream", STREAMS, ids=lambda folder: folder.name)
def test_a_record_names_no_place(stream: Path) -> None:
    for path in stream.glob("*.json"):
        config = read_run(path).config
        assert (config.storage, config.tracking, config.cluster.address) == (Path("runs"), TrackingConfig(), None)
