"""Files and folders that are there as a whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.core.files import whole_file, whole_folder, write_bytes, write_json, write_text
from components.core.options import suggest


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "costs.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": [2]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [2]}
    write_text(path, "Ünï\n", durable=True)
    assert path.read_text(encoding="utf-8") == "Ünï\n"
    write_bytes(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as partial:
        partial.write_bytes(b"ne" * (1 // partial.write_text("", encoding="utf-8")))
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "folder") as partial:
        (partial / "nowhere" / "x").touch()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_with_all_that_is_in_it_and_never_over_another(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with whole_folder(folder) as partial:
        (partial / "x").touch()
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["x"]
    with pytest.raises(OSError, match="not empty"), whole_folder(folder):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_near_name_is_suggested() -> None:
    assert suggest("rnk", ("rank", "alpha")) == " Did you mean rank?"
    assert suggest("zzz", iter(("rank", "alpha"))) == ""
