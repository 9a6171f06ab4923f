"""What a running run does: true while its process lives, nobody's afterwards, and never in the run's way."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from held_locks import held
from small_storage import tmpfs

from components.core.events import EvaluationProgress, Event, Note, PhaseBegan, StepDone, SuitesScored
from components.core.files import partial_path
from components.core.lock import sole_user
from components.runs.activity import Activity, activity
from components.runs.status import RunStatus, read_status
from pipelines import status

TASKS = ["docvqa", "iconqa", "chartqa"]


def step(update: int) -> StepDone:
    return StepDone(
        index=1,
        task="iconqa",
        update=update,
        num_updates=60,
        loss=1.0,
        parts={},
        learning_rate=0.1,
        grad_norm=1.0,
        samples_per_s=1.0,
        data_wait_s=0.0,
    )


def status_of(path: Path) -> RunStatus:
    found = read_status(path)
    assert isinstance(found, RunStatus)
    return found


def wait_for(path: Path, doing: str) -> None:
    end = time.monotonic() + 30
    while status_of(path).doing != doing:
        assert time.monotonic() < end, status_of(path)
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (step(37), "learning task 2 of 3 (iconqa), update 37 of 60"),
        (
            EvaluationProgress(after="zero-shot", task="docvqa", done=8, total=40),
            "scoring before training: docvqa 8/40",
        ),
        (
            EvaluationProgress(after="iconqa", task="docvqa", done=120, total=400),
            "scoring after task 2 of 3 (iconqa): docvqa 120/400",
        ),
        (
            EvaluationProgress(after="iconqa", task="mini-general", done=1, total=84),
            "scoring after task 2 of 3 (iconqa): suite mini-general 1/84",
        ),
        (PhaseBegan(phase="starting Ray"), "starting Ray"),
        (Note(text="something else"), ""),
    ],
)
def test_the_words(event: Event, said: str) -> None:
    assert activity(event, TASKS, len(TASKS)) == said


def test_the_newest_is_told_and_at_most_one_file_a_second_is_written(tmp_path: Path) -> None:
    path, files = tmp_path / "first", set[int]()
    with sole_user(path, "run first"), Activity(path, TASKS) as one:
        one.handle(PhaseBegan(phase="starting Ray"))
        wait_for(path, "starting Ray")
        assert "  now         starting Ray (at 20" in status.block(status_of(path))
        started = time.monotonic()
        for update in range(1, 51):
            one.handle(step(update))
            files.add((path / "activity.json").stat().st_mtime_ns)
            time.sleep(0.03)
        assert len(files) <= time.monotonic() - started + 2
        wait_for(path, "learning task 2 of 3 (iconqa), update 50 of 60")  # written although nothing came after it
    assert not path.exists()  # nothing was left in it


def test_what_is_learned_and_what_is_scored_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "first"
    answering = EvaluationProgress(after="docvqa", task="docvqa", done=8, total=40)
    scored = SuitesScored(tasks_learned=1, after="docvqa", figures={}, retention={}, evaluate_s=1.0)
    with sole_user(path, "run first"), Activity(path, TASKS, beside=True) as one:
        one.handle(step(3))
        one.handle(answering)
        learning = "learning task 2 of 3 (iconqa), update"
        wait_for(path, f"{learning} 3 of 60; scoring after task 1 of 3 (docvqa): docvqa 8/40")
        one.handle(step(4))
        wait_for(path, f"{learning} 4 of 60; scoring after task 1 of 3 (docvqa): docvqa 8/40")
        one.handle(scored)
        wait_for(path, f"{learning} 4 of 60")


def test_what_a_dead_process_has_left_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "first"
    with held(path) as process:
        lock = (path / ".lock").read_text().strip()
        content = {"by": lock, "doing": "learning", "at": "2026-01-02T03:04:05+00:00"}
        (path / "activity.json").write_text(json.dumps(content))
        assert status_of(path).doing == "learning"
        process.kill()
        process.wait()
        assert status_of(path).doing == ""
    with held(path):  # another process, which has not said anything yet
        assert (status_of(path).state, status_of(path).doing) == ("running", "")
        for damaged in ("", "{", "[]", json.dumps({**content, "by": 3}), json.dumps({"by": lock})):
            (path / "activity.json").write_text(damaged)
            assert (status_of(path).state, status_of(path).doing) == ("running", "")


def test_a_full_storage_does_not_hurt(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "64k") as storage, sole_user(storage / "first", "run first"):
        with pytest.raises(OSError, match="No space left"):
            (storage / "filler").write_bytes(bytes(1 << 20))
        with Activity(storage / "first", TASKS) as one:
            one.handle(step(1))
            time.sleep(0.3)
            assert status_of(storage / "first").doing == ""
            (storage / "filler").unlink()
            one.handle(step(2))
            wait_for(storage / "first", "learning task 2 of 3 (iconqa), update 2 of 60")


def test_a_storage_that_hangs_does_not_keep_the_run(tmp_path: Path) -> None:
    path = tmp_path / "first"
    with sole_user(path, "run first"):
        pipe = partial_path(path / "activity.json")
        os.mkfifo(pipe)  # nobody reads it, so opening it for writing waits
        started = time.monotonic()
        with Activity(path, TASKS) as one:
            for update in range(1, 1001):
                one.handle(step(update))
        assert time.monotonic() - started < 10
        pipe.unlink()
