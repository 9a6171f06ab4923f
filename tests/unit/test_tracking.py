"""Recording a stream in a real MLflow sqlite store, read back with `MlflowClient`."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from components.core.errors import ConfigError, TrackingError
from components.core.events import Event, Note, RowScored, StepDone, TaskStarted, UpdateSkipped
from components.core.fingerprint import code_fingerprint
from components.evaluation.matrix import ScoreMatrix
from components.tracking import retry
from components.tracking import tracker as stream_tracker
from components.tracking.config import DatasetRecord, Tracker, TrackingConfig, tracking_uri, ui_command
from components.tracking.registry import BEST, version_at
from components.tracking.store import open_tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

TASKS = ["chartqa", "doc/vqa"]
TAGS = {"stream": "mini", "method": "lora", "backbone": "pocket", "seed": "3"}
PARAMS = {"training": {"rank": 8, "data_uri": "s3://me:secret@bucket/x"}, "long": "x" * 5000, "order": ["a", "b"]}


def started(index: int, resumed_at: int = 0) -> TaskStarted:
    return TaskStarted(
        index=index,
        task=TASKS[index],
        num_samples=400,
        num_updates=5,
        trainable_parameters=10,
        total_parameters=1000,
        start_s=0.5,
        resumed_at=resumed_at,
    )


def step(index: int, update: int, loss: float = 2.0) -> StepDone:
    return StepDone(
        index=index,
        task=TASKS[index],
        update=update,
        num_updates=5,
        loss=loss / update,
        parts={"alignment": 0.5},
        learning_rate=1e-3,
        grad_norm=1.0,
        samples_per_s=30.0,
        data_wait_s=0.01,
    )


def row(
    learned: int,
    scores: list[float | None],
    oracle: list[float | None] | None = None,
    repaired: list[float | None] | None = None,
) -> RowScored:
    return RowScored(
        tasks_learned=learned,
        after="zero-shot" if learned == 0 else TASKS[learned - 1],
        scores=dict(zip(TASKS, scores, strict=True)),
        variants={
            name: dict(zip(TASKS, cells, strict=True))
            for name, cells in {"oracle": oracle, "repaired": repaired}.items()
            if cells is not None
        },
        well_formed={"chartqa": 0.5} if learned else None,
        routing_accuracy={"chartqa": 0.75} if learned else None,
        slot_usage={"chartqa": [3, 1, 0, 0], "doc/vqa": [0, 0, 2, 2]} if learned else None,
        train_s=12.0,
        evaluate_s=3.0,
        peak_memory_bytes=2**30,
        checkpoint_path=f"/checkpoints/task-{learned}" if learned else None,
        samples=[{"prompt": "How many?", "prediction": "3", "score": 1.0}],
    )


def first_part() -> list[Event]:
    """Zero-shot, all of task 1, and task 2 until it dies at update 3."""
    zero = [row(0, [4.0, 2.0])]
    one = [started(0), *(step(0, update) for update in range(1, 6)), row(1, [60.0, None], [62.0, None], [61.0, None])]
    return [*zero, *one, started(1), *(step(1, update) for update in range(1, 4))]


def second_part() -> list[Event]:
    """The resumed stream: earlier rows again, task 2 from update 2 on, and its row."""
    again = [row(0, [4.0, 2.0]), row(1, [60.0, None], [62.0, None], [61.0, None])]
    two = [started(1, resumed_at=2), *(step(1, update) for update in range(3, 6)), step(1, 6, math.nan)]
    skipped = UpdateSkipped(index=1, task=TASKS[1], update=7, cause="its loss is nan", skipped=2, allowed=5)
    return [*again, *two, skipped, row(2, [40.0, 80.0], [62.0, 81.0], [56.0, 80.0])]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def run_id(storage: Path) -> str:
    """A stream that died in task 2 and was resumed: what every test below reads."""
    records = [DatasetRecord(name="chartqa/train", digest="d" * 64, uri="file:///d", num_rows=400, context="train")]
    notes: list[Note] = []
    first = open_tracker(TrackingConfig(), storage, "lora-3", PARAMS, TAGS, records, on_note=notes.append)
    for event in first_part():
        first.handle(event)
    first.finish("FAILED")
    changed = PARAMS | {"order": ["b"]}
    second = open_tracker(
        TrackingConfig(), storage, "lora-3", changed, TAGS, records, first.run_id, on_note=notes.append
    )
    assert first.run_id is not None
    assert second.run_id == first.run_id
    for event in second_part():
        second.handle(event)
    second.finish("FINISHED")
    assert [note.text for note in notes] == [
        "MLflow keeps the first values of parameters that changed on resume: order."
    ]
    return first.run_id


@pytest.fixture(scope="module")
def client(storage: Path, run_id: str) -> MlflowClient:
    from mlflow import MlflowClient

    assert run_id
    return MlflowClient(tracking_uri(TrackingConfig(), storage))


def curve(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def read_json(client: MlflowClient, run_id: str, file: str, folder: Path) -> dict[str, Any]:
    return json.loads(Path(client.download_artifacts(run_id, file, str(folder))).read_text())


def test_the_parent_run(client: MlflowClient, run_id: str) -> None:
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "lora-3"
    assert run.data.params["training.rank"] == "8"
    assert run.data.params["training.data_uri"] == "s3://***@bucket/x"
    assert run.data.params["long"].endswith("...")
    assert run.data.params["order"] == '["a", "b"]'  # the first value stays
    assert TAGS.items() <= run.data.tags.items()
    assert run.data.tags["code_fingerprint"] == code_fingerprint()
    note = run.data.tags["mlflow.note.content"]
    assert "Taught the stream `mini`" in note
    assert "| doc/vqa | 40.00 | 80.00 |" in note
    assert run.inputs is not None
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("chartqa/train", "d" * 36)
    assert json.loads(str(dataset.profile))["sha256"] == "d" * 64
    assert client.get_experiment(run.info.experiment_id).name == "littoral"


def test_scores_are_recorded_once_at_tasks_learned(client: MlflowClient, run_id: str) -> None:
    assert curve(client, run_id, "accuracy/chartqa") == [(0, 4.0), (1, 60.0), (2, 40.0)]
    assert curve(client, run_id, "accuracy/doc_vqa") == [(0, 2.0), (2, 80.0)]  # an unseen cell is no point
    assert curve(client, run_id, "final_average") == [(1, 60.0), (2, 60.0)]
    assert curve(client, run_id, "forgetting") == [(2, 20.0)]
    assert curve(client, run_id, "bwt") == [(2, -20.0)]
    assert curve(client, run_id, "zero_shot_average") == [(0, 3.0), (1, 3.0), (2, 3.0)]
    assert curve(client, run_id, "oracle/final_average") == [(1, 62.0), (2, 71.5)]
    assert curve(client, run_id, "oracle/forgetting") == [(2, 0.0)]
    assert curve(client, run_id, "oracle/accuracy/doc_vqa") == [(2, 81.0)]
    # by hand: chartqa falls 60 to 40, with its replies repaired 61 to 56
    assert curve(client, run_id, "forgetting_knowledge_loss") == [(2, 5.0)]
    assert curve(client, run_id, "forgetting_format_drift") == [(2, 15.0)]
    assert curve(client, run_id, "repaired/accuracy/doc_vqa") == [(2, 80.0)]
    assert curve(client, run_id, "well_formed/chartqa") == [(1, 0.5), (2, 0.5)]
    assert curve(client, run_id, "routing_accuracy/chartqa") == [(1, 0.75), (2, 0.75)]
    assert curve(client, run_id, "slots/dead") == [(1, 0.0), (2, 0.0)]
    assert curve(client, run_id, "cost/peak_memory_gib") == [(0, 1.0), (1, 1.0), (2, 1.0)]


def test_the_matrix_as_json_table_and_images(client: MlflowClient, run_id: str, tmp_path: Path) -> None:
    content = read_json(client, run_id, "score_matrix.json", tmp_path)
    assert ScoreMatrix.from_dict(content).rows == [[4.0, 2.0], [60.0, None], [40.0, 80.0]]
    assert (content["method"], content["seed"]) == ("lora", 3)
    assert content["oracle"]["summary"]["final_average"] == 71.5
    assert content["repaired"]["summary"]["final_average"] == 68.0
    table = read_json(client, run_id, "score_matrix_table.json", tmp_path)
    assert table["columns"] == ["after", *TASKS]
    assert table["data"] == [["zero-shot", 4.0, 2.0], ["chartqa", 60.0, None], ["doc/vqa", 40.0, 80.0]]
    sample = read_json(client, run_id, "predictions_sample/02.json", tmp_path)
    assert sample == {"columns": ["prompt", "prediction", "score"], "data": [["How many?", "3", 1.0]]}
    tables = json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])  # how the UI finds tables
    assert {"path": "score_matrix_table.json", "type": "table"} in tables
    assert len(tables) == 4
    pictures = sorted(item.path for item in client.list_artifacts(run_id, "images") if item.path.endswith(".png"))
    kinds = [Path(path).name.split("+")[0:3] for path in pictures]
    assert kinds.count(["score_matrix", "step", "2"]) == 1
    assert len([kind for kind in kinds if kind[0] == "score_matrix"]) == 3  # rows told twice are drawn once
    assert len([kind for kind in kinds if kind[0] == "score_matrix_oracle"]) == 2
    assert len([kind for kind in kinds if kind[0] == "slot_usage"]) == 2


def test_each_task_has_a_child_run_with_its_curve(client: MlflowClient, run_id: str) -> None:
    experiment_id = client.get_run(run_id).info.experiment_id
    children = client.search_runs(
        [experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", order_by=["attributes.start_time"]
    )
    assert [child.info.run_name for child in children] == ["01 chartqa", "02 doc/vqa"]
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED"]
    assert children[0].data.params["num_updates"] == "5"
    first = curve(client, children[0].info.run_id, "train/loss")
    assert first == [(update, 2.0 / update) for update in range(1, 6)]
    # Updates 1-3 came before the failure, 3 was repeated, 6 had no finite loss.
    second = curve(client, children[1].info.run_id, "train/loss")
    assert [update for update, _ in second] == [1, 2, 3, 4, 5]
    assert [update for update, _ in curve(client, children[1].info.run_id, "train/alignment")] == [1, 2, 3, 4, 5, 6]
    assert curve(client, children[1].info.run_id, "train/skipped_updates") == [(7, 2.0)]
    for key in ("learning_rate", "grad_norm", "samples_per_s", "data_wait_s"):
        assert len(curve(client, children[0].info.run_id, f"train/{key}")) == 5


def test_each_checkpoint_is_a_logged_model_with_its_scores(client: MlflowClient, run_id: str) -> None:
    experiment_id = client.get_run(run_id).info.experiment_id
    models = sorted(client.search_logged_models([experiment_id]), key=lambda model: model.name)
    assert [model.name for model in models] == ["lora after 01 chartqa", "lora after 02 doc_vqa"]
    assert models[0].tags["checkpoint"] == "file:///checkpoints/task-1"
    assert str(models[0].status) == "READY"
    assert {metric.key: metric.value for metric in models[1].metrics or []}["final_average"] == 60.0
    outputs = client.get_run(run_id).outputs
    assert outputs is not None
    assert sorted(output.step for output in outputs.model_outputs) == [1, 2]


def test_the_pages_searches_are_understood(client: MlflowClient, run_id: str) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "mlflow.md").read_text()
    block = page.partition("search box answers:\n\n```text\n")[2].partition("```")[0]
    searches = [line.partition("     ")[0] for line in block.splitlines()]
    assert len(searches) == 7
    experiment = client.get_run(run_id).info.experiment_id
    found = {search: [run.info.run_id for run in client.search_runs([experiment], search)] for search in searches}
    assert [search for search, runs in found.items() if run_id in runs] == ["metrics.forgetting_routing_error > 5"]
    adapted = searches[0].replace("lcia", "lora"), searches[-2].replace("RUN-ID", run_id)
    assert [len(client.search_runs([experiment], search)) for search in adapted] == [1, 2]


def test_versions_tell_their_parents_and_the_best_run_has_the_alias(client: MlflowClient, run_id: str) -> None:
    """Runs of their own stream: an unfinished one is never the best, a worse one does not take the alias."""
    storage = Path(str(client.tracking_uri).removeprefix("sqlite:///")).parent
    tags = TAGS | {"stream": "of/its:own", "stream_digest": "0123456789"}

    def learn(name: str, *rows: RowScored) -> str:
        tracker = open_tracker(TrackingConfig(), storage, name, {}, tags)
        for event in (*rows, *rows[-1:]):  # told twice, registered once
            tracker.handle(event)
        tracker.finish("FINISHED")
        assert tracker.run_id is not None
        return tracker.run_id

    name = "lora-of_its_own-01234567-pocket"
    learn("half", row(1, [99.0, None]))
    assert version_at(client, name, BEST) is None
    good = learn("good", row(1, [50.0, None]), row(2, [40.0, 60.0]))
    secret = replace(row(2, [40.0, 50.0]), checkpoint_path="s3://me:hunter2@bucket/task-2")
    learn("worse", row(1, [80.0, None]), secret)
    best = version_at(client, name, BEST)
    assert best is not None
    assert (best.run_id, best.source, best.tags["final_average"]) == (good, "file:///checkpoints/task-2", "50.000000")
    versions = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda one: int(one.version))
    assert versions[-1].source == versions[-1].tags["checkpoint"] == "s3://***@bucket/task-2"
    assert [one.tags.get("parent_version") for one in versions] == [None, None, "2", None, "4"]
    assert {one.tags["code_fingerprint"] for one in versions} == {code_fingerprint()}
    assert client.get_logged_model(best.tags["logged_model"]).source_run_id == good


def test_the_rows_of_another_stream_are_refused(storage: Path, run_id: str) -> None:
    notes: list[Note] = []
    tracker = open_tracker(TrackingConfig(), storage, "x", {}, TAGS, (), run_id, on_note=notes.append)
    other = row(1, [1.0, None])
    tracker.handle(RowScored(**{**vars(other), "scores": {"other": 1.0}, "variants": {}}))
    assert "start another run id for another stream" in notes[0].text
    tracker.finish("FINISHED")


def test_the_default_store_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(TrackingConfig(), Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert "mlflow ui --backend-store-uri sqlite:////runs/mlflow.db" in ui_command("sqlite:////runs/mlflow.db")
    assert ui_command("http://me:pw@host:5000") == "http://***@host:5000"


def test_an_unreachable_server_is_one_sentence_soon(tmp_path: Path) -> None:
    # Port 9 of this machine: nothing listens there.
    for uri in ("http://127.0.0.1:9", "postgresql://me:pw@127.0.0.1:9/runs"):
        begin_s = time.monotonic()
        with pytest.raises(TrackingError, match=r"cannot be used .nothing answers there") as caught:
            open_tracker(TrackingConfig(uri=uri), tmp_path, "x", {}, TAGS)
        assert time.monotonic() - begin_s < 10
        assert "me:pw" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_lost_run_and_an_unwritable_store(storage: Path, run_id: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"cannot be used .*f00d"):
        open_tracker(TrackingConfig(), storage, "x", {}, TAGS, resume_run_id="f00d")
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="cannot be used"):
        open_tracker(TrackingConfig(), tmp_path / "file", "x", {}, TAGS)
    assert run_id


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "sqlite:///mlflow.db", "ftp://host"])
def test_stores_that_cannot_work_are_refused_at_once(uri: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:////absolute/path"):
        TrackingConfig(uri=uri)
    with pytest.raises(ConfigError, match="experiment is empty"):
        TrackingConfig(experiment=" ")


def test_a_task_learned_before_an_interruption_is_finished_with_its_stream(
    client: MlflowClient,
) -> None:
    """Ctrl-C between the last update and its scores: the run that goes on only scores the task."""
    storage = Path(str(client.tracking_uri).removeprefix("sqlite:///")).parent
    first = open_tracker(TrackingConfig(), storage, "cut", {}, TAGS)
    first.handle(started(0))
    first.handle(step(0, 1))
    first.finish("KILLED")
    experiment = client.get_run(str(first.run_id)).info.experiment_id
    below = f"tags.`mlflow.parentRunId` = '{first.run_id}'"
    assert [run.info.status for run in client.search_runs([experiment], below)] == ["KILLED"]
    killed = open_tracker(TrackingConfig(), storage, "cut", {}, TAGS, resume_run_id=first.run_id)
    killed.handle(started(0, resumed_at=1))  # its driver ends here, without a word
    assert [run.info.status for run in client.search_runs([experiment], below)] == ["RUNNING"]
    open_tracker(TrackingConfig(), storage, "cut", {}, TAGS, resume_run_id=first.run_id).finish("KILLED")
    assert [run.info.status for run in client.search_runs([experiment], below)] == ["KILLED"]
    again = open_tracker(TrackingConfig(), storage, "cut", {}, TAGS, resume_run_id=first.run_id)
    again.handle(row(1, [50.0, None]))
    again.finish("FINISHED")
    assert [run.info.status for run in client.search_runs([experiment], below)] == ["FINISHED"]
    assert client.get_run(str(first.run_id)).info.status == "FINISHED"


def test_turned_off_it_records_nothing(tmp_path: Path) -> None:
    tracker = open_tracker(TrackingConfig(enabled=False), tmp_path, "x", {}, TAGS)
    assert type(tracker) is Tracker
    for event in first_part():
        tracker.handle(event)
    tracker.finish("FINISHED")
    assert list(tmp_path.iterdir()) == []
    assert tracker.run_id is None


@pytest.fixture
def broken(storage: Path, run_id: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Tracker, list[Note]]]:
    """A tracker whose artifact folder stopped being writable after opening: a full disk, a lost mount."""
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    notes: list[Note] = []
    tracker = open_tracker(TrackingConfig(), storage, "y", {}, TAGS, on_note=notes.append)
    artifacts = storage / "mlflow-artifacts" / str(tracker.run_id)
    artifacts.parent.mkdir(exist_ok=True)
    artifacts.write_text("a file where a folder must be")
    yield tracker, notes
    assert run_id


def test_trouble_after_opening_is_told_once_and_made_good(broken: tuple[Tracker, list[Note]], storage: Path) -> None:
    tracker, notes = broken
    tracker.handle(row(0, [4.0, 2.0]))
    tracker.handle(row(1, [60.0, None]))
    assert len(notes) == 1
    assert "MLflow did not record scores" in notes[0].text
    (storage / "mlflow-artifacts" / str(tracker.run_id)).unlink()
    tracker.finish("FINISHED")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(TrackingConfig(), storage))
    assert tracker.run_id is not None
    assert [step for step, _ in curve(client, tracker.run_id, "accuracy/chartqa")][-1] == 1
    assert any(item.path == "score_matrix.json" for item in client.list_artifacts(tracker.run_id))
    assert len(notes) == 1


class Clock:
    """Stands for `time` in the module under test: sleeping takes no time but is counted."""

    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


def test_an_outage_across_two_tasks_loses_no_point(storage: Path, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is locked by somebody else while a task ends and the next one begins."""
    clock = Clock()
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    monkeypatch.setattr(retry, "time", clock)
    monkeypatch.setattr(stream_tracker, "time", clock)
    notes: list[Note] = []
    tracker = open_tracker(TrackingConfig(), storage, "outage", {}, TAGS, on_note=notes.append)
    tracker.handle(started(0))
    database = Path(tracking_uri(TrackingConfig(), storage).removeprefix("sqlite:///"))
    away = database.with_suffix(".away")
    database.rename(away)
    database.mkdir()  # connections opened from here on fail
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(TrackingConfig(), storage))
    try:
        for update in range(1, 6):
            tracker.handle(step(0, update))
            clock.now_s += 5
        tracker.handle(started(1))
        tracker.handle(step(1, 1))
    finally:
        database.rmdir()
        away.rename(database)
    assert notes, "the outage was not noticed"
    clock.now_s += retry.PAUSE_S + 1
    tracker.handle(step(1, 2))
    tracker.finish("FINISHED")
    experiment_id = client.get_run(run_id).info.experiment_id
    found = client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{tracker.run_id}'")
    updates = {run.data.tags["task"]: curve(client, run.info.run_id, "train/loss") for run in found}
    assert [update for update, _ in updates["chartqa"]] == [1, 2, 3, 4, 5]
    assert [update for update, _ in updates["doc/vqa"]] == [1, 2]
    assert len(notes) == 1
    assert {run.info.status for run in found} == {"FINISHED"}


def _open_at_once(folder: Path, name: str, barrier: Any, failures: Any) -> None:
    import mlflow  # noqa: F401  (imported before the start signal, so that both processes reach the store together)

    barrier.wait(timeout=120)
    try:
        open_tracker(TrackingConfig(), folder, name, PARAMS, TAGS).finish("FINISHED")
    except TrackingError as error:
        failures.put(str(error))


def test_runs_that_start_together_share_a_store_that_none_of_them_found(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow"])
    barrier, failures = context.Barrier(3), context.SimpleQueue()
    processes = [
        context.Process(target=_open_at_once, args=(tmp_path, f"run-{number}", barrier, failures))
        for number in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=180)
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in processes] == [0, 0, 0]
