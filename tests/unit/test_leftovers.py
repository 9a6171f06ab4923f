"""What dead processes left is removed, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from components.core.files import partial_path
from components.core.leftovers import RAYLET, clear_partial, clear_temporary, end_orphans, orphans, temporary_folder
from components.core.machine import host_name

ROOT = Path(__file__).resolve().parents[2]
DIES = """
import os, signal, sys
from pathlib import Path
from components.core.files import whole_file, whole_folder
from components.core.leftovers import temporary_folder
from components.core.location import fetched, place
run, store = Path(sys.argv[1]), place("memory://leftovers/run")
(store / "costs.json").put(b"whole")
(temporary_folder("checkpoint") / "method.safetensors").write_bytes(b"half")
with (
    whole_file(run / "checkpoints" / "costs.json") as file,
    whole_folder(run / "01-a") as folder,
    whole_file(store / "matrix.json") as put,
    fetched(store / "costs.json") as near,
):
    assert near.read_bytes() == b"whole"
    put.write_bytes(b"half")
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
    assert sorted(path.name.split("-")[1] for path in temporary.iterdir()) == ["checkpoint", "fetched", "put"]

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


@contextmanager
def sleeping(title: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose command line begins with `title`."""
    # -I -S: found by its path, and not by a title that is none
    command = [title, "-I", "-S", "-c", "import sys, time; print(flush=True); time.sleep(60)"]
    outside = {name: value for name, value in os.environ.items() if name != RAYLET}
    with subprocess.Popen(
        command, executable=os.path.realpath(sys.executable), env=outside | environment, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # so it has the title by now
            yield process
        finally:
            process.kill()


def test_processes_of_a_ray_that_is_no_more_are_ended() -> None:
    with sleeping("gone") as gone:
        pass
    with (
        sleeping("/ray/core/src/ray/raylet/raylet") as raylet,
        sleeping("another program") as reused,
        sleeping("ray::TrainController.run", **{RAYLET: str(gone.pid)}) as orphan,
        sleeping("ray::IDLE", **{RAYLET: str(reused.pid)}) as of_reused_id,
        sleeping("ray::IDLE", **{RAYLET: str(gone.pid)}) as ends_by_itself,
        sleeping("ray::RayTrainWorker", **{RAYLET: str(raylet.pid)}) as at_work,
        sleeping("server", **{RAYLET: str(gone.pid)}) as started_by_a_worker,
        sleeping("ray::IDLE") as unsure,
    ):
        own = psutil.Process().children()  # others' processes are none of a test's business
        found = orphans(own)
        assert {each.pid for each in found} == {orphan.pid, of_reused_id.pid, ends_by_itself.pid}
        ends_by_itself.terminate()
        ends_by_itself.wait(10)
        assert set(end_orphans(found)) == {orphan.pid, of_reused_id.pid}
        assert orphan.wait(10) == of_reused_id.wait(10) == -9
        assert [each.poll() for each in (raylet, reused, at_work, started_by_a_worker, unsure)] == [None] * 5
