"""A run's folder: ids that can be one, and a lock that real processes hold, refuse and leave behind when killed."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from failing_store import Store
from finished_runs import STREAM
from held_locks import HOLD, held

from components.core.errors import ConfigError, StorageError
from components.core.lock import LOCK_FILE, holder_of, sole_user
from components.core.naming import MAX_ID_BYTES, id_of, require_id
from components.models.config import BackboneConfig
from components.training.config import RunConfig
from components.training.plan import plan_stream
from components.training.run_folder import claim_run_dir


@pytest.mark.parametrize("name", ["first", "a.b", "-x", "0", "_", "a" * MAX_ID_BYTES, "mlflow", "a..b", "x."])
def test_ids_that_can_be_folders(name: str) -> None:
    assert RunConfig(run_id=name).run_id == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "...", ".hidden", "a/b", "a b", "ü", "a\n", "a\0", "a" * (MAX_ID_BYTES + 1), "a" * 5000),
        *("mlflow.db", "MLFLOW.DB", "mlflow.db-journal", "mlflow-artifacts", "mlruns"),
    ],
)
def test_other_ids_are_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(ConfigError, match="run id") as refused:
        RunConfig(run_id=name)
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="sweep id"):
        require_id(name, "sweep")


def test_ids_that_are_made_are_legal_whatever_they_are_made_of() -> None:
    assert id_of("mini-coast-domain", "sequential_lora") == "mini-coast-domain-sequential-lora"
    assert id_of("my stream ü", "..", "l2p") == "my-stream-l2p"
    for parts in (("..",), ("ü",), ("a" * 900, "b"), ("mlflow.db ",), ("",)):
        assert len(id_of(*parts)) <= MAX_ID_BYTES
    require_id(id_of("ü"))


def test_the_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    with held(folder) as process:
        with pytest.raises(ConfigError) as refused, sole_user(folder, "run first"):
            pass
        said = str(refused.value)
        assert said.startswith(f"run first is already running in {folder} (process {process.pid} on ")
        assert socket.gethostname() in said
        assert " since 2" in said
        assert "\n" not in said
        with sole_user(tmp_path / "second", "run second"):
            pass


def test_the_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    with held(tmp_path / "first") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "first" / LOCK_FILE).is_file()
        with sole_user(tmp_path / "first", "run first"):
            assert f"process {os.getpid()} on" in (tmp_path / "first" / LOCK_FILE).read_text()
    assert not (tmp_path / "first" / LOCK_FILE).exists()


def test_a_process_may_take_its_own_lock_again_and_keeps_it(tmp_path: Path) -> None:
    with sole_user(tmp_path, "run first"):
        with sole_user(tmp_path, "run first"):
            pass
        held_by_us = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True)
        assert f"(process {os.getpid()} on" in held_by_us.stderr


def test_looking_at_a_free_lock_keeps_nobody_out(tmp_path: Path) -> None:
    lock = tmp_path / LOCK_FILE
    with subprocess.Popen(["true"]) as ended:  # on another host it would be waited for
        ended.wait()
    lock.write_text(f"process {ended.pid} on {socket.gethostname()} since 2026-01-02 03:04:05+00:00\n")
    with lock.open() as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)  # what `holder_of` does, but for much longer
        threading.Timer(0.03, lambda: fcntl.flock(looked_at, fcntl.LOCK_UN)).start()
        with sole_user(tmp_path, "run first"):
            found = holder_of(tmp_path)
    assert found is not None
    assert (found.process, found.host, found.holds) == (os.getpid(), socket.gethostname(), True)
    assert holder_of(tmp_path) is None


def test_what_was_made_and_stays_empty_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), sole_user(tmp_path / "a" / "b" / "first", "run first"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept").mkdir()
    with sole_user(tmp_path / "kept", "run kept"):
        pass
    with sole_user(tmp_path / "used", "run used"):
        (tmp_path / "used" / "config.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "used"]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "first", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match=r"choose a writable --storage\.$"), sole_user(folder, "run first"):
            pass


def test_what_a_store_says_of_itself_is_said_as_it_is(tmp_path: Path) -> None:
    """Whichever operation fails: not as if another --storage were all that could help."""
    config = RunConfig(run_id="first", storage=tmp_path, backbone=BackboneConfig(name="pocket"), stream=STREAM)
    plan, whole = plan_stream(config), Store(whole_puts=True)
    claim_run_dir(replace(plan, run_dir=whole.place("b/runs/first")))
    assert whole.done
    for number, _ in enumerate(whole.done, 1):
        store = Store(whole_puts=True)
        with store.failing(number, after=False, gone=True), pytest.raises(StorageError, match=r"^test://b/runs/first"):
            claim_run_dir(replace(plan, run_dir=store.place("b/runs/first")))
