"""The table of methods on the pages is what `pipelines/methods.py` prints: figures measured, not written."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.console.tables import markdown
from components.methods import METHODS
from pipelines.methods import HEADER, line

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods" / "index.md").read_text()


@pytest.mark.long
@pytest.mark.smol
def test_the_page_holds_the_measured_table() -> None:
    table = markdown(HEADER, [line(name, "smol") for name in METHODS])
    rows = [row for row in PAGE.splitlines() if row.startswith(("| `", f"| {HEADER[0]}")) and row.count("|") == 9]
    assert [row for row in table if row not in rows and not row.startswith("| ---")] == []
