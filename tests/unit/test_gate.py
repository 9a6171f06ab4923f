"""What is in production, in a real MLflow store: versions, the alias that moves or stays, and gate.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.core.checkpoint import write_checkpoint
from components.core.errors import ConfigError, TrackingError
from components.core.events import RowScored
from components.data.stream_config import StreamConfig
from components.evaluation.matrix import ScoreMatrix
from components.runs.gate import accept, read_decision, reject
from components.runs.status import RunStatus, read_status
from components.tracking.aliases import Reference, Registry, production
from components.tracking.config import TrackingConfig
from components.tracking.store import open_tracker
from components.training.config import RunConfig
from components.training.lineage import Origin, Part
from pipelines import nightly

TASKS = ("chartqa", "docvqa", "iconqa")
MODEL = production("shop", "production")
VERDICT = "after docvqa the earlier tasks have lost 1.00 points"


def scored(run: Path, learned: int) -> RowScored:
    scores = {task: 50.0 if place < learned else None for place, task in enumerate(TASKS[:learned])}
    return RowScored(
        tasks_learned=learned,
        after=TASKS[learned - 1],
        scores=scores,
        variants={},
        well_formed=None,
        routing_accuracy=None,
        slot_usage=None,
        train_s=1.0,
        evaluate_s=1.0,
        peak_memory_bytes=1,
        checkpoint_path=str(run / "checkpoints" / f"{learned:02d}-{TASKS[learned - 1]}"),
        samples=[],
    )


def a_run(storage: Path, name: str, learned: int, *, after: str | None = None) -> Path:
    """A folder as a run leaves it that learned so many tasks, all but the last of them before it began, and its
    record in MLflow.
    """
    run = storage / name
    run.mkdir()
    tracker = open_tracker(
        TrackingConfig(), storage, name, {}, {"stream": name, "method": "lora", "backbone": "pocket"}
    )
    tracker.handle(scored(run, learned))
    tracker.finish("FINISHED")
    (run / "mlflow.json").write_text(json.dumps({"run_id": tracker.run_id, "ui": "mlflow ui"}))
    (run / "config.json").write_text(json.dumps({**RunConfig(run_id=name).to_json(), "stream_digest": "0"}))
    checkpoint = run / "checkpoints" / f"{learned:02d}-{TASKS[learned - 1]}"
    write_checkpoint(checkpoint, {"method_structure": {"tasks": [*TASKS[:learned]]}}, {})
    (run / "finished.json").write_text(json.dumps({"finished": "2026-01-02T03:04:05+00:00"}))
    matrix = ScoreMatrix(
        list(TASKS[:learned]),
        [[50.0] * row + [None] * (learned - row) for row in range(1, learned + 1)],
        zero_shot=False,
    )
    matrix.write(run / "score_matrix.json", stream=name, method="lora", backbone="pocket", seed=0)
    if after is not None:
        Origin(
            run=after,
            folder=str(storage / after),
            at_task=learned - 1,
            score_again=False,
            stream_name="mini",
            stream_digest="0",
            parts=(Part(stream=StreamConfig(), tasks=TASKS[: learned - 1]),),
            identities=("0",) * (learned - 1),
            template="chatml",
        ).write(run)
    return run


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `first`, and `good`, `other` and `bad`, which continued from it; one store takes seconds to make."""
    folder = tmp_path_factory.mktemp("runs")
    a_run(folder, "first", 1)
    for name in ("good", "other", "bad"):
        a_run(folder, name, 2, after="first")
    a_run(folder, "third", 3, after="good")
    return folder


@pytest.fixture
def registry(storage: Path) -> Iterator[Registry]:
    """With `first` in production, whatever a test does."""
    registry = Registry(TrackingConfig(), storage)
    link = json.loads((storage / "first" / "mlflow.json").read_text())
    registry.move(MODEL, registry.add("shop", link["run_id"], 1, "the first one").version)
    yield registry
    for gate in storage.glob("*/gate.json"):
        gate.unlink()


def named(registry: Registry) -> str:
    found = registry.find(MODEL)
    assert found is not None
    return f"{found.run}/{found.learned:02d}-{found.task}"


def test_an_accepted_run_is_in_production_and_says_so(storage: Path, registry: Registry) -> None:
    version = accept(registry, MODEL, storage / "good", VERDICT)
    assert named(registry) == "good/02-docvqa"
    assert registry.find(Reference(name="shop", version=version.version)) == version == registry.find(MODEL)
    decision = read_decision(storage / "good")
    assert decision is not None
    assert (decision.gate, decision.version, decision.before) == ("accepted", version.version, "first/01-chartqa")
    assert (decision.checkpoint, decision.model) == ("02-docvqa", "models:/shop@production")
    from mlflow import MlflowClient

    client = MlflowClient(registry.uri)
    tags = client.get_model_version("shop", version.version).tags
    assert (tags["gate"], tags["gate_verdict"]) == ("accepted", VERDICT)
    assert tags["checkpoint"] == (storage / "good" / "checkpoints" / "02-docvqa").as_uri()
    run = json.loads((storage / "good" / "mlflow.json").read_text())["run_id"]
    assert client.get_run(run).data.tags["gate"] == "accepted"


def test_after_a_kill_at_any_place_there_is_one_version_and_the_same_end(storage: Path, registry: Registry) -> None:
    first = accept(registry, MODEL, storage / "good", VERDICT)
    (storage / "good" / "gate.json").unlink()  # killed before the file
    assert accept(registry, MODEL, storage / "good", VERDICT) == first
    before = registry.find(Reference(name="shop", version="1"))
    assert before is not None
    registry.move(MODEL, before.version)  # killed before the alias
    assert accept(registry, MODEL, storage / "good", VERDICT) == first
    assert named(registry) == "good/02-docvqa"
    accepted = accept(registry, MODEL, storage / "third", VERDICT)
    assert int(accepted.version) == int(first.version) + 1
    assert named(registry) == "third/03-iconqa"


def test_a_rejected_run_changes_nothing_but_its_own_record(storage: Path, registry: Registry) -> None:
    reject(registry, MODEL, storage / "bad", "after docvqa the earlier tasks have lost 60.00 points")
    assert named(registry) == "first/01-chartqa"
    decision = read_decision(storage / "bad")
    assert decision is not None
    assert (decision.gate, decision.version) == ("rejected", None)
    assert "lost 60.00 points; models:/shop@production was left at first/01-chartqa" in decision.text()
    found = read_status(storage / "bad")
    assert isinstance(found, RunStatus)
    assert found.state == "rejected"
    accept(registry, MODEL, storage / "bad", VERDICT)  # under a higher budget
    assert named(registry) == "bad/02-docvqa"
    assert read_status(storage / "bad").state == "finished"


def test_an_alias_that_was_moved_meanwhile_is_not_moved_back(storage: Path, registry: Registry) -> None:
    accept(registry, MODEL, storage / "good", VERDICT)
    with pytest.raises(ConfigError, match=r"is version \d+ of shop \(good/02-docvqa\) now, and was first after task 1"):
        accept(registry, MODEL, storage / "other", VERDICT)
    assert named(registry) == "good/02-docvqa"
    assert read_decision(storage / "other") is None


def test_a_checkpoint_that_mlflow_does_not_have_is_no_version(storage: Path, registry: Registry) -> None:
    link = json.loads((storage / "first" / "mlflow.json").read_text())
    with pytest.raises(TrackingError, match="no version yet for the checkpoint after task 7"):
        registry.add("shop", link["run_id"], 7, VERDICT)
    assert registry.find(production("shop", "staging")) is None
    assert registry.find(production("nobody", "production")) is None
    assert registry.find(Reference(name="shop", version="99")) is None


def test_a_dry_run_says_what_would_go_into_production_first(
    storage: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "new", "--first", "first", "--storage", str(storage), "--dry-run"]
    assert nightly.main(given) == 0
    said = capsys.readouterr().out
    assert said.startswith("models:/new@production names nothing yet; first/01-chartqa would go into production\n")
    assert registry.find(production("new", "production")) is None


def test_without_a_store_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no MLflow store"):
        Registry(TrackingConfig(), tmp_path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "text",
    ["models:/", "models:/shop", "models:/shop@", "models:/a/b@c", "models:/shop/latest", "runs/first", "shop@x"],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="names no registered model"):
        Reference.parse(text)


def test_references() -> None:
    assert Reference.parse("models:/my shop@blue-1") == Reference(name="my shop", alias="blue-1")
    assert str(Reference.parse("models:/shop/12")) == "models:/shop/12"
    for name, alias in (("a/b", "x"), (".a", "x"), ("", "x"), ("shop", "v1"), ("shop", "latest"), ("shop", "a b")):
        with pytest.raises(ConfigError, match=r"--model|--alias"):
            production(name, alias)
