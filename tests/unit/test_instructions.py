"""Instructions of splits are read late, and are those of the rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.core.errors import DataError
from components.data.instructions import Instructions
from components.data.rows import Split, write_split
from tests.unit.sample_rows import picture, row

TEXTS = ["<image>\nWhat is it?", "Two\nlines", " <image> edges ", "Ja, 日本?"]
SAID = ["What is it?", "Two\nlines", "edges", "Ja, 日本?"]


def written(folder: Path, texts: list[str]) -> Split:
    rows = [row(text, "red", image=picture((9, 9, 9)) if "<image>" in text else None) for text in texts]
    return write_split(rows, folder, task="a", split="train")


def test_they_are_the_first_turns_of_all_rows_in_order(tmp_path: Path) -> None:
    found = Instructions([written(tmp_path / "a", TEXTS), written(tmp_path / "b", TEXTS[::-1])])
    assert list(found) == SAID + SAID[::-1]
    assert (len(found), found[1], found[-1], found[2:5]) == (8, SAID[1], SAID[0], [SAID[2], SAID[3], SAID[3]])
    assert not Instructions([written(tmp_path / "c", [])])


def test_nothing_is_read_before_a_text_is_asked_for(tmp_path: Path) -> None:
    found = Instructions([written(tmp_path / "a", TEXTS)])
    shutil.rmtree(tmp_path / "a")
    assert len(found) == 4
    assert found
    with pytest.raises(DataError, match="not a whole Parquet file"):
        found[0]
