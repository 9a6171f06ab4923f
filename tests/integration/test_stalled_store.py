"""A server that stalls while it is asked to make something is asked again, and makes all of it later. No Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import Store
from stalling_proxy import StallingProxy

from components.core.events import Event, RowScored, StepDone, TaskStarted
from components.tracking.config import TrackingConfig
from components.tracking.sender import QueuedTracker
from components.tracking.store import open_tracker
from components.tracking.tracker import StreamTracker

TASKS = ("large", "small")
STALL_S = 12.0  # longer than a call is tried, where a request may take 1 s


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    started = Store(tmp_path_factory.mktemp("store"))
    yield started
    started.kill()


@pytest.fixture
def proxy(store: Store) -> Iterator[StallingProxy]:
    with StallingProxy(store.port) as started:
        yield started


def events_of(index: int) -> list[Event]:
    """A task that is learned in one update, with its checkpoint."""
    begin = TaskStarted(
        index=index,
        task=TASKS[index],
        num_samples=4,
        num_updates=1,
        trainable_parameters=1,
        total_parameters=2,
        start_s=0.1,
    )
    step = StepDone(
        index=index,
        task=TASKS[index],
        update=1,
        num_updates=1,
        loss=1.0,
        parts={},
        learning_rate=1e-3,
        grad_norm=1.0,
        samples_per_s=1.0,
        data_wait_s=0.0,
    )
    row = RowScored(
        tasks_learned=index + 1,
        after=TASKS[index],
        scores={task: 50.0 if at <= index else None for at, task in enumerate(TASKS)},
        routing_accuracy=None,
        slot_usage=None,
        train_s=1.0,
        evaluate_s=1.0,
        peak_memory_bytes=2**30,
        checkpoint_path=f"/nowhere/{index + 1:02d}-{TASKS[index]}",
    )
    return [begin, step, row]


@pytest.mark.parametrize("request_line", ["runs/create", pytest.param("model-versions/create", marks=pytest.mark.long)])
def test_what_a_stalled_store_makes_twice_is_there_once(
    store: Store, proxy: StallingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_line: str
) -> None:
    """The stall begins with a request to make something. All its repetitions are answered later, one after another."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    tags = {"stream": request_line.partition("/")[0], "method": "lora", "backbone": "pocket", "seed": "0"}
    config = TrackingConfig(uri=f"http://127.0.0.1:{proxy.port}", experiment=tags["stream"])
    opened = open_tracker(config, tmp_path, "run", {}, tags, tasks=TASKS)
    assert isinstance(opened, StreamTracker)
    tracker = QueuedTracker(opened, tmp_path)
    proxy.stall_at(request_line)
    for event in [*events_of(0), *events_of(1)]:
        tracker.handle(event)
    wait_for(lambda: proxy.held > 1)  # asked again
    time.sleep(STALL_S)
    proxy.go_on()
    tracker.finish("FINISHED")
    client = MlflowClient(store.uri)
    experiment = client.get_run(str(tracker.run_id)).info.experiment_id
    runs = client.search_runs([experiment])
    assert sorted(str(run.info.run_name) for run in runs) == ["01 large", "02 small", "run"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if "task" in run.data.tags:
            assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1]
    models = client.search_logged_models([experiment])
    assert sorted(str(model.name) for model in models) == ["lora after 01 large", "lora after 02 small"]
    versions = [one for one in client.search_model_versions() if one.run_id == tracker.run_id]
    assert sorted(one.tags["logged_model"] for one in versions) == sorted(str(model.model_id) for model in models)
    name = versions[0].name
    assert client.get_model_version_by_alias(name, "best").tags["tasks_learned"] == "2"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
