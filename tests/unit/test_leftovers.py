"""What dead processes left is removed, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from components.core.files import host_name, partial_path
from components.core.leftovers import clear_partial, clear_temporary, temporary_folder

ROOT = Path(__file__).resolve().parents[2]
DIES = """
import os, signal, sys
from pathlib import Path
from components.core.files import whole_file, whole_folder
from components.core.leftovers import temporary_folder
run = Path(sys.argv[1])
(temporary_folder("checkpoint") / "method.safetensors").write_bytes(b"half")
with whole_file(run / "checkpoints" / "costs.json") as file, whole_folder(run / "01-a") as folder:
    file.write_bytes(b"half")
    (folder / "x").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, temporary = tmp_path / "run", tmp_path / "tmp"
    run.mkdir()
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    died = subprocess.run([sys.executable, "-c", DIES, str(run)], env=environment, check=False)
    assert died.returncode == -9
    left = sorted(path.name for path in run.rglob("*.partial"))
    assert [name.split(".")[1] for name in left] == ["01-a", "costs"]
    assert len(list(temporary.iterdir())) == 1

    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    own, unsure = temporary_folder("checkpoint"), temporary / "littoral-abc123"
    elsewhere = run / left[0].replace(host_name(), "other-host")
    unsure.mkdir()
    elsewhere.mkdir()
    working = partial_path(run / "costs.json")
    working.touch()
    clear_partial(run)
    clear_temporary()
    assert sorted(run.rglob("*.partial")) == sorted([elsewhere, working])
    assert sorted(temporary.iterdir()) == sorted([own, unsure])
