"""Settings that another job left behind, and what a failed start leaves: sentences and ended processes, without Ray."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from components.core import ray_session as ray_start
from components.core.errors import ConfigError
from components.core.ray_watch import end_children


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_start, "JOIN_TIMEOUT_S", 1)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:9", "no Ray cluster answers there within"),
        ("ray://127.0.0.1:9", "no Ray cluster answers there within"),
        ("nohost.invalid:6379", "no Ray cluster answers there within"),
        ("http://127.0.0.1:8265", "which is not the address of a Ray cluster"),
        ("localhost", "which is not the address of a Ray cluster"),
        ("localhost:99999", "which is not the address of a Ray cluster"),
        (":6379", "which is not the address of a Ray cluster"),
    ],
)
def test_an_address_without_a_cluster_is_one_sentence_soon(
    address: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_s = time.monotonic()
    with pytest.raises(ConfigError, match=sentence) as refused:
        ray_start.open_ray(address, num_cpus=4)
    assert str(refused.value).startswith(f"{address} was given as address")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=sentence) as refused:
        ray_start.open_ray(None, num_cpus=4)
    assert str(refused.value).startswith(f"{address} is in RAY_ADDRESS")
    assert time.monotonic() - begin_s < 15


def test_something_else_that_listens_is_no_cluster() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ConfigError, match="no Ray cluster answers there"):
            ray_start.open_ray(f"127.0.0.1:{silent.getsockname()[1]}", num_cpus=4)


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_that_ray_cannot_use_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ray_start.require_temp_dir()
    monkeypatch.setenv(name, str(tmp_path / ("x" * 100)))
    with pytest.raises(ConfigError, match=f"^{name} is .* bytes too long for the sockets"):
        ray_start.open_ray(None, num_cpus=4)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(name, "/proc/none")
    with pytest.raises(ConfigError, match=f"^{name} is /proc/none, and Ray cannot write there"):
        ray_start.require_temp_dir()
    monkeypatch.setenv(name, "/tmp")
    monkeypatch.setattr(ray_start, "MIN_FREE_MIB", 1 << 40)
    with pytest.raises(ConfigError, match=f"^{name} is /tmp, which has .* MiB left"):
        ray_start.require_temp_dir()


def test_what_a_failed_start_has_left_is_ended_and_nothing_else() -> None:
    folder = Path(ray_start.ray.__file__).parent
    wait = "import subprocess, sys, time; subprocess.Popen(['sleep', '99']); print('up', flush=True); time.sleep(99)"

    def begun(*marks: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", wait, *marks], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    earlier = begun(str(folder / "gcs_server"))
    before = set(psutil.Process().children())
    left, other = begun(str(folder / "gcs_server")), begun()
    below = psutil.Process(left.pid).children()
    end_children(frozenset(before))
    try:
        assert left.poll() is not None or left.wait(5) < 0
        assert not any(psutil.pid_exists(child.pid) and child.status() != "zombie" for child in below)
        assert earlier.poll() is None
        assert other.poll() is None
    finally:
        for process in (earlier, other):
            for each in [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]:
                each.kill()
            process.wait()


def test_every_try_waits_longer() -> None:
    assert list(ray_start.START_WAITS_S) == sorted(set(ray_start.START_WAITS_S))
    assert ray_start.START_WAITS_S[0] >= 30
