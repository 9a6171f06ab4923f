"""A store that is slow, fails, comes back or never answers: nobody waits for it, and every point arrives once."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from components.core.events import Event, Note, RowScored, StepDone, TaskStarted, UpdateSkipped
from components.tracking import retry, sender
from components.tracking.config import TrackingConfig, tracking_uri
from components.tracking.history import ScoreHistory
from components.tracking.outbox import EVENTS_FILE, Outbox, is_recorded
from components.tracking.points import writes_whole
from components.tracking.sender import QueuedTracker
from components.tracking.store import open_tracker
from components.tracking.tracker import StreamTracker
from components.training import delivery

TAGS = {"stream": "long", "method": "lora", "backbone": "pocket", "seed": "0"}


def tasks(count: int) -> list[str]:
    return [f"task-{number:03d}" for number in range(1, count + 1)]


def row(learned: int, count: int) -> RowScored:
    names = tasks(count)
    scores: dict[str, float | None] = {name: 50.0 if at < learned else None for at, name in enumerate(names)}
    return RowScored(
        tasks_learned=learned,
        after=names[learned - 1],
        scores=scores,
        routing_accuracy=None,
        slot_usage=None,
        train_s=1.0,
        evaluate_s=1.0,
        peak_memory_bytes=2**30,
        checkpoint_path=None,
    )


def events(learned: int, count: int, updates: int = 3) -> list[Event]:
    name = tasks(count)[learned - 1]
    begin = TaskStarted(
        index=learned - 1,
        task=name,
        num_samples=4,
        num_updates=updates,
        trainable_parameters=1,
        total_parameters=2,
        start_s=0.1,
    )
    steps = [
        StepDone(
            index=learned - 1,
            task=name,
            update=update,
            num_updates=updates,
            loss=1.0 / update,
            parts={},
            learning_rate=1e-3,
            grad_norm=1.0,
            samples_per_s=1.0,
            data_wait_s=0.0,
        )
        for update in range(1, updates + 1)
    ]
    return [begin, *steps, row(learned, count)]


class Unsteady:
    """In front of a real store: its calls can be slow, fail after they were taken, or never return."""

    def __init__(self, store: Any) -> None:
        self._store, self.delay_s, self.fails, self.hangs = store, 0.0, False, False
        self.threads: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)

        def unsteady(*arguments: object) -> object:
            self.threads.add(threading.current_thread().name)
            if self.hangs:
                threading.Event().wait()
            time.sleep(self.delay_s)
            answer = call(*arguments)  # taken; only the answer is lost
            if self.fails:
                raise OSError("the answer was lost")
            return answer

        return unsteady


def opened(
    folder: Path, notes: list[Note], run_id: str | None = None, count: int = 4, wait_s: float = 60.0
) -> tuple[QueuedTracker, Unsteady]:
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)
    tracker = open_tracker(
        TrackingConfig(), folder, "run", {}, TAGS, (), run_id, tasks=tasks(count), on_note=notes.append
    )
    assert isinstance(tracker, StreamTracker)
    unsteady = Unsteady(tracker._store)
    tracker._store = unsteady  # type: ignore[assignment]
    return QueuedTracker(tracker, run_dir, notes.append, wait_s=wait_s), unsteady


def recorded(folder: Path, run_id: str) -> tuple[str, Counter[int], dict[str, tuple[str, Counter[int]]]]:
    """Status and steps of the run, and of each task's."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(TrackingConfig(), folder))

    def steps(run: str, key: str) -> Counter[int]:
        return Counter(metric.step for metric in client.get_metric_history(run, key))

    parent = client.get_run(run_id)
    below = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    children = {run.data.tags["task"]: (run.info.status, steps(run.info.run_id, "train/loss")) for run in below}
    assert len(children) == len(below), "a task has two runs"
    return parent.info.status, steps(run_id, "final_average"), children


def require_whole(folder: Path, run_id: str, count: int) -> None:
    status, rows, children = recorded(folder, run_id)
    assert status == "FINISHED"
    assert rows == dict.fromkeys(range(1, count + 1), 1)
    assert children == {name: ("FINISHED", Counter({1: 1, 2: 1, 3: 1})) for name in tasks(count)}
    assert is_recorded(folder / "run")


def test_a_slow_store_is_waited_for_at_the_end_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "TELL_AFTER_S", 0.2)
    notes: list[Note] = []
    tracker, store = opened(tmp_path, notes)
    store.delay_s = 0.1
    begin_s = time.monotonic()
    for learned in range(1, 5):
        for event in events(learned, 4):
            tracker.handle(event)
    assert time.monotonic() - begin_s < 1.0  # training does not wait; the store needs several seconds
    tracker.finish("FINISHED")
    require_whole(tmp_path, str(tracker.run_id), 4)
    assert store.threads == {"MLflow"}
    assert [note.text for note in notes if "Ctrl-C ends without waiting" in note.text], notes


def test_answers_that_are_lost_repeat_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are taken and their answers lost, as when a server stalls past the time limit; later it returns."""
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    monkeypatch.setattr(retry, "PAUSE_S", 0.2)
    notes: list[Note] = []
    tracker, store = opened(tmp_path, notes)
    for learned in range(1, 5):
        store.fails = learned == 2
        for event in events(learned, 4):
            tracker.handle(event)
        time.sleep(0.6)
    tracker.finish("FINISHED")
    assert any("did not record" in note.text for note in notes)
    require_whole(tmp_path, str(tracker.run_id), 4)


def test_a_store_that_never_returns_is_left_and_the_next_process_sends_the_rest(tmp_path: Path) -> None:
    notes: list[Note] = []
    tracker, store = opened(tmp_path, notes, wait_s=0.5)
    for event in events(1, 4):
        tracker.handle(event)
    deadline_s = time.monotonic() + 20
    while Outbox(tmp_path / "run").sent().offset < Outbox(tmp_path / "run").size:  # type: ignore[union-attr]
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    store.hangs = True
    for learned in range(2, 5):
        for event in events(learned, 4):
            tracker.handle(event)
    begin_s = time.monotonic()
    tracker.finish("FINISHED")
    assert time.monotonic() - begin_s < 5
    assert "the same command sends the rest later" in notes[-1].text
    assert recorded(tmp_path, str(tracker.run_id))[0] == "RUNNING"
    assert not is_recorded(tmp_path / "run")
    with (tmp_path / "run" / EVENTS_FILE).open("a") as file:
        file.write('{"kind": "RowSc')  # torn by the death of the process
    again, _ = opened(tmp_path, notes, tracker.run_id)
    again.handle(row(1, 4))  # a continued stream tells its rows again
    again.finish("FINISHED")
    require_whole(tmp_path, str(tracker.run_id), 4)


def test_many_tasks_cost_the_same_each(tmp_path: Path) -> None:
    count, notes = 24, list[Note]()
    tracker = open_tracker(TrackingConfig(), tmp_path, "run", {}, TAGS, tasks=tasks(count), on_note=notes.append)
    seconds = []
    for learned in range(1, count + 1):
        begin_s = time.process_time()
        tracker.handle(row(learned, count))
        seconds.append(time.process_time() - begin_s)
    tracker.finish("FINISHED")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(TrackingConfig(), tmp_path))
    run = client.get_run(str(tracker.run_id))
    assert run.info.status == "FINISHED"
    assert not notes
    assert [m.step for m in client.get_metric_history(str(tracker.run_id), "final_average")] == list(
        range(1, count + 1)
    )
    pictures = [one.path for one in client.list_artifacts(str(tracker.run_id), "images") if one.path.endswith(".png")]
    assert len(pictures) == len([learned for learned in range(1, count + 1) if writes_whole(learned, count)]) == 12
    note = run.data.tags["mlflow.note.content"]
    assert len(note) <= 5000
    assert note.rstrip().endswith("**")  # the last figure, whole
    # A row has as many scores as tasks, so it may take longer later.
    assert sum(seconds[-6:]) < 6 * sum(seconds[:6]), seconds


def test_the_note_is_shortened_by_rows_and_columns() -> None:
    history = ScoreHistory()
    for learned in range(1, 61):
        history = history.with_row(row(learned, 60)) or history
    text = history.markdown(4000)
    assert len(text) <= 4000
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1  # no line is cut
    assert lines[-1].startswith("| task-060 |")
    assert "of 60 tasks are shown" in text
    assert "of 60 tasks" not in history.markdown()


class Mailbox:
    """A workers' queue: events, then nothing, or the loss of its actor."""

    def __init__(self, held: list[Event], lost: bool = False) -> None:
        self._held, self._lost = held, lost

    def get(self, timeout: float) -> Event:
        if self._held:
            return self._held.pop(0)
        if self._lost:
            raise delivery.RayError("the actor died")
        time.sleep(min(timeout, 0.01))
        raise delivery.Empty

    def shutdown(self, force: bool) -> None:
        pass


@pytest.mark.parametrize("lost", [False, True])
def test_one_event_that_fails_costs_no_other(lost: bool, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def handle(event: Event) -> None:
        assert isinstance(event, Note)
        if event.text == "2":
            raise ValueError("bad event")
        seen.append(event.text)

    mailbox: Any = Mailbox([Note(text=str(number)) for number in range(5)], lost)
    with delivery.delivered(mailbox, handle):
        pass
    assert seen == ["0", "1", "3", "4"]
    assert "bad event" in caplog.text
    assert "events" not in {thread.name for thread in threading.enumerate()}


def test_the_outbox_gives_back_what_was_put_in(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    bad = UpdateSkipped(index=0, task="a", update=2, cause="its loss is nan", skipped=1, allowed=5)
    told = [*events(1, 3), bad]
    for event in [*told, Note(text="for the console")]:
        outbox.add(event)
    assert [queued.event for queued in outbox.read(0)] == told
    assert outbox.size == (tmp_path / EVENTS_FILE).stat().st_size
    assert all(json.loads(line) for line in (tmp_path / EVENTS_FILE).read_text().splitlines())
