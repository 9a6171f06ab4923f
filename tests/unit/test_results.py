"""Recorded runs: every folder has its table on the results page, and the README's rows are those of the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.reporting.groups import require_comparable
from components.reporting.tables import table_of
from components.runs.results import read_run
from components.tracking.config import TrackingConfig

ROOT = Path(__file__).resolve().parents[2]
STREAMS = sorted({path.parent for path in (ROOT / "docs/results").glob("*/*.json")} - {ROOT / "docs/results/campaigns"})
SHOWN = "mini-coast-domain"  # in the README


@pytest.mark.parametrize("stream", STREAMS, ids=lambda folder: folder.name)
def test_a_page_holds_the_table_of_the_records(stream: Path) -> None:
    require_comparable([read_run(path) for path in sorted(stream.glob("*.json"))])
    assert f"<!-- report: {stream.name} -->" in (ROOT / "docs" / "results" / "README.md").read_text()


def test_the_readmes_rows_are_those_of_the_records() -> None:
    header, lines = table_of([read_run(path) for path in sorted((ROOT / "docs" / "results" / SHOWN).glob("*.json"))])
    columns = [header.index(name) for name in ("method", "final average", "forgetting", "seeds")]
    printed = {f"| {' | '.join(line[column] for column in columns)} |" for line in lines}
    text = (ROOT / "README.md").read_text().partition("\n## Results\n")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 5
    assert set(rows) - printed == set()


@pytest.mark.parametrize("stream", STREAMS, ids=lambda folder: folder.name)
def test_a_record_names_no_place(stream: Path) -> None:
    for path in stream.glob("*.json"):
        config = read_run(path).config
        assert (config.storage, config.tracking, config.cluster.address) == (Path("runs"), TrackingConfig(), None)
