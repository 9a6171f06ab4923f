"""Locks in stores that have none: one holder at a time, also of a crowd, and none that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from failing_store import Store

from components.core import heartbeat, tickets
from components.core.errors import ConfigError, StorageError
from components.core.files import whole_folder, write_json
from components.core.holder import Held
from components.core.location import Location
from components.core.lock import holder_of, sole_user

NAME = "process 12 on node-of-a-cluster since 2026-01-02 03:04:05+00:00"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.05)
    monkeypatch.setattr(heartbeat, "WATCH_S", 0.5)
    monkeypatch.setattr(tickets, "AGAIN_S", 0.05)
    monkeypatch.setattr(tickets, "LOST_S", 0.3)


@pytest.fixture
def run() -> Location:
    return Store(whole_puts=True).place("b/runs/first")


def left_behind(run: Location, *, beats: int = 1, process: bytes = b"another kernel 5") -> Location:
    """A ticket of another host."""
    ticket = run / ".lock" / "0000-node"
    ticket.put(b"%s\nholds %d\n%s\n" % (NAME.encode(), beats, process))
    return ticket


@contextmanager
def beating(run: Location) -> Iterator[None]:
    """Another host's process that lives."""
    done = threading.Event()

    def beat() -> None:
        for number in range(10_000):
            left_behind(run, beats=number)
            if done.wait(0.05):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_it_is_held_and_given_back(run: Location) -> None:
    assert holder_of(run) is None
    with sole_user(run, "run first"):
        found = holder_of(run)
        assert found is not None
        assert (found.process, found.holds) == (os.getpid(), True)
        with sole_user(run, "run first"):  # inside an open one nothing happens
            pass
        assert holder_of(run) == found
        with pytest.raises(Held, match=f"process {os.getpid()} on "), tickets.held(run / ".lock", lambda _: False):
            pass
        assert holder_of(run) == found
    assert holder_of(run) is None
    assert (run / ".lock").exists() is False


def test_one_who_waits_is_told_for_whom_and_gets_it(run: Location) -> None:
    told: list[str] = []
    with beating(run):
        started = time.monotonic()
        with pytest.raises(ConfigError, match=f"run first is already running in test://b/runs/first .{NAME[:30]}"):
            sole_user(run, "run first").__enter__()
        assert time.monotonic() - started < 0.5  # its next beat tells; nothing else is waited for
    (run / ".lock" / "0000-node").unlink()
    with beating(run):

        def keep_waiting(holder: str) -> bool:
            told.append(holder)
            return len(told) < 3

        with pytest.raises(Held), tickets.held(run / ".lock", keep_waiting):
            pass
    assert told == [NAME] * 3


def test_a_process_that_is_gone_is_watched_and_then_replaced(run: Location) -> None:
    ticket = left_behind(run)
    started = time.monotonic()
    with sole_user(run, "run first"):
        assert time.monotonic() - started >= 0.5
        assert not ticket.exists()


def test_a_process_of_this_machine_that_is_gone_is_known_to_be(run: Location) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        ticket = left_behind(run, process=tickets._process(other.pid))
        ticket.put(ticket.read_bytes().replace(b"process 12", b"process %d" % other.pid))
        found = holder_of(run)
        assert found is not None
        assert found.holds is True
        with pytest.raises(ConfigError, match="already running"), sole_user(run, "run first"):
            pass
        other.kill()
        other.wait()
        found = holder_of(run)
        assert found is not None
        assert found.holds is False
        started = time.monotonic()
        with sole_user(run, "run first"):
            assert time.monotonic() - started < 0.4  # nothing had to be watched


def test_never_two_at_once_and_always_one(run: Location) -> None:
    """A crowd that begins together, many times: the count of holders is the oracle."""
    inside, most, taken = 0, 0, 0
    counting = threading.Lock()
    start = threading.Barrier(4)

    def claim() -> None:
        nonlocal inside, most, taken
        for _ in range(5):
            start.wait()
            with tickets.held(run / ".lock", lambda _: True):
                with counting:
                    inside += 1
                    most, taken = max(most, inside), taken + 1
                time.sleep(0.002)
                with counting:
                    inside -= 1

    crowd = [threading.Thread(target=claim, daemon=True) for _ in range(4)]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join(timeout=60)
    assert (most, taken) == (1, 20)
    assert holder_of(run) is None


def test_one_that_cannot_renew_it_writes_no_more(run: Location) -> None:
    """It gives up before another process may take over, by its own clock."""
    store: Store = run.filesystem.handler  # pyright: ignore[reportAttributeAccessIssue]
    write_json(run / "costs.json", 1)
    with sole_user(run, "run first"):
        write_json(run / "costs.json", 2)
        with store.failing(1, after=False, gone=True):
            time.sleep(0.5)
        for write in (lambda: write_json(run / "costs.json", 3), lambda: _folder(run / "checkpoints" / "01-a")):
            with pytest.raises(StorageError, match=r"could not renew its lock on test://b/runs/first in time"):
                write()
        write_json(run.parent / "second" / "costs.json", 1)  # another run's place is not touched by it
    assert (run / "costs.json").read_bytes().strip() == b"2"
    assert not (run / "checkpoints").exists()


def _folder(target: Location) -> None:
    with whole_folder(target, last="state.json") as made:
        write_json(made / "state.json", {})


@pytest.mark.parametrize(("age_s", "holds"), [(0.1, True), (-0.1, True), (60, None), (-60, None), (1000, False)])
def test_what_can_be_known_of_another_host(run: Location, age_s: float, holds: bool | None) -> None:
    store: Store = run.filesystem.handler  # pyright: ignore[reportAttributeAccessIssue]
    ticket = left_behind(run)
    store.written[ticket.path] -= timedelta(seconds=age_s)
    found = holder_of(run)
    assert found is not None
    assert (found.name, found.holds) == (NAME, holds)


def test_a_store_that_does_not_answer_is_one_sentence(run: Location) -> None:
    store: Store = run.filesystem.handler  # pyright: ignore[reportAttributeAccessIssue]
    for number in (1, 2, 3):
        with (
            store.failing(number, after=False, gone=True),
            pytest.raises((ConfigError, StorageError), match=r"test://b/runs/first"),
            sole_user(run, "run first"),
        ):
            pass
