"""Locks where the kernel's do not reach: file systems without any, and holders on other hosts."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from held_locks import held

from components.core import heartbeat
from components.core.errors import ConfigError
from components.core.lock import LOCK_FILE, holder_of, sole_user


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.05)
    monkeypatch.setattr(heartbeat, "WATCH_S", 0.5)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks, as Lustre without the option `flock`."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)


def left_behind(folder: Path, host: str) -> Path:
    """A lock file that process 12 of `host` has written just now."""
    lock = folder / LOCK_FILE
    lock.write_text(f"process 12 on {host} since 2026-01-02 03:04:05+00:00\n")
    return lock


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_file_is_held_while_its_process_lives(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        asked = time.monotonic()
        with (
            pytest.raises(ConfigError, match=f"run first is already running .*process {process.pid} on"),
            sole_user(tmp_path, "run first"),
        ):
            pass
        assert time.monotonic() - asked < 0.4  # nothing had to be watched
        found = holder_of(tmp_path)
        assert found is not None
        assert found.holds
        process.send_signal(signal.SIGKILL)
        process.wait()
        with sole_user(tmp_path, "run first"):
            assert f"process {os.getpid()} on" in (tmp_path / LOCK_FILE).read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kernel", [True, False])
def test_a_file_that_another_host_still_touches_is_held(
    kernel: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not kernel:
        request.getfixturevalue("no_locks")
    lock = left_behind(tmp_path, "node-7")
    with (
        lock.open() as theirs,
        heartbeat.beating(lock, theirs.fileno()),
        pytest.raises(ConfigError, match="process 12 on node-7 since"),
        sole_user(tmp_path, "run first"),
    ):
        pass
    asked = time.monotonic()
    with sole_user(tmp_path, "run first"):  # its host is gone
        assert time.monotonic() - asked > 0.4
        assert f"process {os.getpid()} on {socket.gethostname()}" in lock.read_text()
        before = lock.stat().st_mtime_ns
        time.sleep(0.3)
        assert lock.stat().st_mtime_ns > before
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_long_ago_is_not_watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = left_behind(tmp_path, "node-7")
    long_ago = time.time() - heartbeat.STALE_S - 5
    os.utime(lock, (long_ago, long_ago))
    with caplog.at_level(logging.WARNING), sole_user(tmp_path, "run first"):
        pass
    assert caplog.text == ""


def test_waiting_says_for_whom_and_ends_with_the_holder(tmp_path: Path) -> None:
    said: list[str] = []
    with held(tmp_path) as process:
        threading.Timer(1.5, process.kill).start()
        with sole_user(tmp_path, "run first", wait=said.append):
            assert process.wait(timeout=10) == -signal.SIGKILL
    (told,) = said
    assert told.startswith(f"waiting for run first, which process {process.pid} on {socket.gethostname()} since 20")
