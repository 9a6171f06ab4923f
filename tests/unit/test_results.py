"""The README's table of recorded runs is what report.py prints from docs/results."""

from __future__ import annotations

from pathlib import Path

from components.recorded import read_run
from components.tracking_config import TrackingConfig
from pipelines.report import group_lines, grouped, markdown, require_comparable

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "docs" / "results" / "mini-coast-domain").glob("*.json"))


def test_the_readme_holds_the_table_of_the_records() -> None:
    runs = [read_run(path) for path in RECORDS]
    require_comparable(runs)
    readme = (ROOT / "README.md").read_text().splitlines()
    lines = [line for group in grouped(runs) for line in group_lines(group)]
    assert len(lines) >= len({run.config.method.name for run in runs}) > 0
    assert [line for line in markdown([], lines)[2:] if line not in readme] == []


def test_a_record_names_no_place() -> None:
    for path in RECORDS:
        config = read_run(path).config
        assert (config.storage, config.tracking, config.cluster.address) == (Path("runs"), TrackingConfig(), None)
