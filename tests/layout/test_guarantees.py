"""Every guarantee on its page names tests that exist, and every point has at least one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guides" / "guarantees.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
POINTS = 10


def lines() -> list[tuple[str, str, str]]:
    """Heading, guarantee and proof of every line of the tables."""
    heading, found = "", []
    for line in PAGE.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("| ") and line not in ("| guarantee | shown by |", "| --- | --- |"):
            guarantee, proof = line.strip("| ").split(" | ")
            found.append((heading, guarantee, proof))
    return found


def missing(proof: str) -> list[str]:
    """Of the tests that a text names, those that are not there; the text itself where it names none."""
    named = NAMED.findall(proof)
    return [f"{path}::{name}" for path, name in named if not there(ROOT / path, name)] if named else [proof]


def there(path: Path, name: str) -> bool:
    if not path.is_file():
        return False
    functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return name in functions if name else bool(functions)


@pytest.mark.parametrize(("heading", "guarantee", "proof"), lines(), ids=lambda text: str(text)[:40])
def test_it_is_shown_by_tests_that_exist(heading: str, guarantee: str, proof: str) -> None:
    assert missing(proof) == []


def test_every_point_has_a_guarantee() -> None:
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert len(headings) == POINTS + 1, "and what is not promised"
    assert {heading for heading, _, _ in lines()} == set(headings[:-1])


def test_a_missing_test_would_be_found() -> None:
    assert missing("`tests/layout/test_guarantees.py::test_every_point_has_a_guarantee`") == []
    assert len(missing("`tests/layout/test_guarantees.py::test_nothing`, `tests/none.py`")) == 2
    assert missing("by hand") == ["by hand"]
