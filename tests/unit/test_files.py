"""Files and folders that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.files import whole_file, whole_folder, write_bytes, write_json, write_text
from components.core.options import suggest


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "costs.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": [2]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [2]}
    write_text(path, "Ünï\n")
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


WRITES = """
import os, sys
from pathlib import Path
from components.core.files import whole_folder, write_json
fsync, done = os.fsync, []
def synced(descriptor):
    done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
    fsync(descriptor)
os.fsync = synced
sys.addaudithook(lambda event, args: event == "os.rename" and done.append(f"rename to {Path(args[1]).name}"))
write_json(Path("file.json"), 1)
with whole_folder(Path("folder"), durable=True, replace=True) as partial:
    (partial / "in").write_text("x")
print([each.split(".")[0] + " partial" * each.endswith(".partial") for each in done])
"""


def test_content_is_on_disk_before_its_name_and_the_name_before_the_call_returns(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", WRITES], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    folder = tmp_path.name.split(".")[0]
    assert json.loads(done.stdout.replace("'", '"')) == [
        *("sync  partial", "rename to file", f"sync {folder}"),
        *("sync in", "sync  partial", "rename to folder", f"sync {folder}"),
    ]


def test_a_folder_in_the_place_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for content in ("a", "b"):
        with whole_folder(folder, durable=True, replace=True) as partial:
            (partial / content).touch()
    assert [path.name for path in folder.iterdir()] == ["b"]
    with pytest.raises(ZeroDivisionError), whole_folder(folder, replace=True):
        raise ZeroDivisionError
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [folder]
