"""Runs whose storage is a URI: what names it, what is refused before anything starts, and what is moved in a store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from failing_store import Store

from components.core.errors import ConfigError, StorageError
from components.core.events import RowScored, StepDone
from components.core.files import move_folder
from components.core.leftovers import clear_partial
from components.core.location import Location, place, uri_or_path
from components.core.lock import sole_user
from components.data.stream_config import StreamConfig
from components.judging.protocol import Exchange, Verdict, VerdictCache
from components.runs.continuing import to_continue
from components.tracking import outbox
from components.tracking.config import TrackingConfig
from components.tracking.outbox import Outbox, Sent, is_recorded
from components.training.config import RunConfig
from components.training.plan import plan_stream
from components.training.run_folder import check_run_dir, claim_run_dir
from components.training.watchdog import hung
from components.tuning.sweep import SweepOptions, plan_sweep
from pipelines.origin import with_origin
from pipelines.presets import preset

BUCKET = "memory://unit-written/runs"
STREAM = StreamConfig(size="nano", order=("docvqa", "iconqa"))
SERVER = TrackingConfig(uri="http://127.0.0.1:5000")


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def test_a_storage_is_a_path_or_a_uri(tmp_path: Path) -> None:
    for given, kept in (
        (BUCKET, BUCKET),
        (str(tmp_path), tmp_path),
        (tmp_path, tmp_path),
        (f"file://{tmp_path}", tmp_path),
        ("s3://shop/runs?endpoint_override=127.0.0.1:1&scheme=http",) * 2,
    ):
        config = RunConfig(storage=given)
        assert config.storage == kept
        assert type(config.storage) is type(kept)
        assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))).storage == kept
    assert RunConfig(storage=tmp_path / "a" / "..").place == tmp_path
    with pytest.raises(ConfigError, match="storage holds a secret"):
        RunConfig(storage="s3://AKIAABCDEFGHIJKLMNOP:secret@shop/runs")


def test_what_opens_a_place_again_has_its_query_but_no_secret() -> None:
    asked = "?endpoint_override=127.0.0.1:1&scheme=http"
    run = place(f"s3://shop/runs{asked}") / "first"
    assert str(run) == "s3://shop/runs/first"
    assert uri_or_path(run) == f"s3://shop/runs/first{asked}"
    assert uri_or_path(place(uri_or_path(run.parent))) == f"s3://shop/runs{asked}"
    assert uri_or_path(place(f"s3://me:pass@shop/runs{asked}")) == "s3://shop/runs"


def test_it_is_planned_and_claimed_and_another_run_of_its_id_is_refused() -> None:
    config = RunConfig(run_id="first", storage=BUCKET, stream=STREAM, tracking=SERVER)
    plan = plan_stream(config)
    assert str(plan.run_dir) == f"{BUCKET}/first"
    check_run_dir(plan)
    claim_run_dir(plan)
    claim_run_dir(plan)
    stored = json.loads((plan.run_dir / "config.json").read_bytes())
    assert stored["storage"] == BUCKET
    assert preset(f"{BUCKET}/first/config.json").stream == STREAM
    with pytest.raises(ConfigError, match="run first exists with seed = 0, this command has 1"):
        check_run_dir(plan_stream(replace(config, seed=1)))


def test_a_file_of_sqlite_beside_it_is_refused() -> None:
    for plan in (
        lambda run: plan_stream(replace(run, run_id="first")),
        lambda run: plan_sweep(run, SweepOptions()),
    ):
        with pytest.raises(ConfigError, match=rf"^runs in {BUCKET} cannot have MLflow's SQLite file .* --tracking.uri"):
            plan(RunConfig(storage=BUCKET, stream=STREAM))
        plan(RunConfig(storage=BUCKET, stream=STREAM, tracking=SERVER))
        plan(RunConfig(storage=BUCKET, stream=STREAM, tracking=TrackingConfig(enabled=False)))


def test_the_command_that_goes_on_names_the_uri() -> None:
    asked = "?endpoint_override=127.0.0.1:1"
    config = {"stream": {"name": "mini-coast"}}
    link = {"run_id": "a1", "store": "http://127.0.0.1:5000", "ui": "http://127.0.0.1:5000"}
    command, note = to_continue(place(f"s3://shop/runs/first{asked}"), config, link, TrackingConfig())
    assert note == ""
    assert command.endswith(
        f"'s3://shop/runs/first/config.json{asked}' --run-id first --storage 's3://shop/runs{asked}' "
        "--tracking.uri http://127.0.0.1:5000"
    )


def test_another_run_is_named_by_its_uri_or_its_id_in_the_storage() -> None:
    plan = plan_stream(RunConfig(run_id="first", storage=BUCKET, stream=STREAM, tracking=SERVER))
    claim_run_dir(plan)
    for given in (f"{BUCKET}/first", "first"):
        storage = [] if given != "first" else ["--storage", BUCKET]
        arguments, folder = with_origin(["--continue-from", given, *storage, "--at-task", "1"])
        assert folder == place(f"{BUCKET}/first")
        assert arguments[0] == f"{BUCKET}/first/config.json"
        assert arguments[arguments.index("--storage") + 1] == BUCKET
    with pytest.raises(ConfigError, match="memory://unit-written/runs/second is not the folder of a run"):
        with_origin(["--continue-from", f"{BUCKET}/second"])


# ---- what is appended


def step(update: int) -> StepDone:
    return StepDone(
        index=0,
        task="a",
        update=update,
        num_updates=9,
        loss=1.0,
        parts={},
        learning_rate=0.1,
        grad_norm=1.0,
        samples_per_s=1.0,
        data_wait_s=0.0,
    )


def test_the_outbox_of_a_run_in_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = place(f"{BUCKET}/first")
    row = RowScored(
        tasks_learned=1,
        after="a",
        scores={"a": 1.0},
        routing_accuracy=None,
        slot_usage=None,
        train_s=1.0,
        evaluate_s=1.0,
        peak_memory_bytes=1.0,
        checkpoint_path=None,
    )
    first = Outbox(run_dir)
    for event in (step(1), step(2), row, step(3)):
        assert first.add(event)
    assert [queued.event for queued in first.read(0)] == [step(1), step(2), row, step(3)]
    second = Outbox(run_dir)  # of another process, when the first one was killed
    assert [queued.event for queued in second.read(0)] == [step(1), step(2), row]
    second.add(step(3))
    second.flush()
    second.keep(Sent(run_id="x", offset=second.size))
    assert [queued.event for queued in Outbox(run_dir).read(0)] == [step(1), step(2), row, step(3)]
    found = Outbox(run_dir).sent()
    assert found is not None
    assert found.offset == second.size == Outbox(run_dir).size
    second.add(step(4))
    second.keep(Sent(run_id="x", offset=second.size))  # too soon
    assert Outbox(run_dir).sent() == found
    third = Outbox(run_dir, checkpoint_every=6)
    for number in (4, 5, 6, 7):  # a checkpoint after update 6 may be there at once
        third.add(step(number))
    assert [queued.event for queued in Outbox(run_dir).read(0)][-3:] == [step(4), step(5), step(6)]
    assert not is_recorded(run_dir)
    monkeypatch.setattr(outbox, "EVERY_S", 0.0)
    second.keep(Sent(run_id="x", offset=second.size, closed="FINISHED"))
    assert is_recorded(run_dir)


class _Judge:
    identity = "judge-1"

    def verdicts(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(score=5.0) for _ in exchanges]


def test_verdicts_of_judges_that_write_at_once() -> None:
    folder = place(f"{BUCKET}/judge_cache.jsonl")
    keys = [VerdictCache.key(_Judge(), Exchange(question=name, answers=(), reply="")) for name in "abcd"]
    one, other = VerdictCache(folder), VerdictCache(folder)
    for number, key in enumerate(keys):
        (one, other)[number % 2].add({key: Verdict(score=float(number), said=f"{number}")})
    found = VerdictCache(folder)
    assert [found.get(key) for key in keys] == [Verdict(score=float(at), said=f"{at}") for at in range(4)]


# ---- what is moved, and put back


@pytest.mark.parametrize("whole_puts", [True, False])
@pytest.mark.parametrize("gone", [True, False])
def test_a_checkpoint_that_is_moved_is_whole_wherever_that_fails(whole_puts: bool, gone: bool) -> None:
    content = {"a.safetensors": b"aaaa", "b.safetensors": b"bbbbbb", "state.json": b"{}"}
    at, ended = 0, False
    while not ended:
        at += 1
        store = Store(whole_puts=whole_puts)
        source, target = (store.place(f"runs/r/{name}/02-b") for name in ("checkpoints", "rejected"))
        for name, data in content.items():
            (source / name).put(data)
        ended = True
        with store.failing(at, after=False, gone=gone):
            try:
                move_folder(source, target, "state.json")
            except OSError:
                ended = False
            ended = ended and len(store.done) < at
        for folder in (source, target):
            if f"{folder.path}/state.json" in store.files:
                assert {name: store.files[f"{folder.path}/{name}"] for name in content} == content
        move_folder(source, target, "state.json")  # the same command again
        clear_partial(store.place("runs/r"))
        assert store.files == {f"{target.path}/{name}": data for name, data in content.items()}
    assert at > 5


def test_what_a_killed_process_set_aside_is_put_back() -> None:
    store = Store(whole_puts=False)
    for name, data in {
        "costs.json": b"new",
        ".costs.json.older": b"old",
        "checkpoints/01-a/.state.json.older": b"state",
        ".mlflow.json.node-1.77.partial": b"half",
        "predictions/.01-a/a.parquet": b"kept",
    }.items():
        store._put(f"runs/r/{name}", data)
    clear_partial(store.place("runs/r"))
    assert store.files == {
        "runs/r/costs.json": b"new",
        "runs/r/checkpoints/01-a/state.json": b"state",
        "runs/r/predictions/.01-a/a.parquet": b"kept",
    }


def test_stacks_in_a_store_are_told() -> None:
    run_dir = place(f"{BUCKET}/first")
    assert hung(run_dir) == ""
    assert isinstance(run_dir, Location)
    (run_dir / "stacks" / "now-rank-0.txt").put(b"Thread 0x1: in stands_still")
    assert f"its stacks are in {run_dir}/stacks" in hung(run_dir)


def test_a_store_that_cannot_be_written_is_one_sentence() -> None:
    store = Store(whole_puts=True)
    with (
        store.failing(1, after=False, gone=True),
        pytest.raises((ConfigError, StorageError), match=r"^cannot write to test://runs/r \(lost before .*\)"),
        sole_user(store.place("runs/r"), "run r"),
    ):
        pass
