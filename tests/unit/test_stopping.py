"""Asking a run to stop: by its file, and by signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from components.core.errors import Terminated
from components.training.stopping import StopWatch, request_stop, stop_requested, stopping_on_signals


def test_the_folder_is_looked_at_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("components.training.stopping.time.monotonic", lambda: now[0])
    watch = StopWatch(tmp_path)
    assert not watch.requested()
    request_stop(tmp_path)
    now[0] = 0.9
    assert not watch.requested()
    now[0] = 1.1
    assert watch.requested()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks(number: signal.Signals, tmp_path: Path) -> None:
    said: list[str] = []
    before = signal.getsignal(number)
    with stopping_on_signals(tmp_path, said.append) as raise_if_received:
        raise_if_received()
        os.kill(os.getpid(), number)
        assert stop_requested(tmp_path)
        assert said == ["stopping in order; a second signal ends it at once"]
        with pytest.raises(KeyboardInterrupt) as end:
            raise_if_received()
        assert isinstance(end.value, Terminated) == (number == signal.SIGTERM)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_ends_and_a_third_kills(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    try:
        with stopping_on_signals(tmp_path, lambda _: None):
            os.kill(os.getpid(), number)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_closed_output_does_not_keep_a_run_from_stopping(tmp_path: Path) -> None:
    def say(text: str) -> None:
        raise SystemExit(1)

    with stopping_on_signals(tmp_path, say):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop_requested(tmp_path)


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping_on_signals(tmp_path, print) as raise_if_received:
            os.kill(os.getpid(), signal.SIGINT)
            raise_if_received()
        assert not stop_requested(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_that_cannot_be_asked_ends_at_the_first_signal(tmp_path: Path) -> None:
    with stopping_on_signals(tmp_path / "gone", print), pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
