"""When two runs may share a learned task: only if everything that its learning depends on is equal.

python -m pytest tests/unit/test_shared_tasks.py
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from components.core.errors import CheckpointError
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.methods import METHODS
from components.models.config import BackboneConfig
from components.tracking.config import TrackingConfig
from components.training.config import ClusterConfig, EvaluationConfig, RunConfig
from components.training.schedule import plan_schedule
from components.training.task_cache import CachedTask, cached_tasks
from pipelines.presets import pocket

ORDER = ("chartqa", "iconqa", "docvqa")


def run(**changes: object) -> RunConfig:
    base = replace(pocket(), run_id="x", stream=StreamConfig(size="nano", order=ORDER))
    return replace(base, **changes)  # type: ignore[arg-type]


def keys(config: RunConfig) -> list[str | None]:
    cached = cached_tasks(Path("shared"), config, plan_schedule(config, open_stream(config.stream)))
    return [None if cached is None else cached.folder.name for cached in cached]


@cache
def plain_keys() -> list[str | None]:
    return keys(run())


def ordered(*order: str) -> RunConfig:
    return run(stream=StreamConfig(size="nano", order=order))


def test_a_key_knows_all_tasks_so_far_and_no_later_one() -> None:
    whole, other = keys(run()), keys(ordered("chartqa", "iconqa", "medicalqa"))
    assert len(set(whole)) == 3
    assert whole[:2] == other[:2]
    assert whole[2] != other[2]
    assert keys(ordered("chartqa")) == whole[:1]
    assert keys(ordered("iconqa", "chartqa", "docvqa"))[2] != whole[2]


training, optimizer = run().training, run().training.optimizer
LEARNS_ALIKE = {
    "run_id": run(run_id="y"),
    "storage": run(storage=Path("elsewhere")),
    "tracking": run(tracking=TrackingConfig(experiment="other")),
    "evaluation": run(evaluation=EvaluationConfig(batch_size=3, limit=2, oracle_routing=False, zero_shot=False)),
    "test rows": run(stream=StreamConfig(size="nano", order=ORDER, test_limit=3)),
    "checkpoints": run(training=replace(training, checkpoint_every_updates=1)),
}
LEARNS_OTHERWISE = {
    "seed": run(seed=1),
    "method": run(method=METHODS["sequential_lora"]()),
    "rank": run(method=replace(run().method, rank=3)),
    "backbone": run(backbone=BackboneConfig(name="pocket", template="vicuna_v1")),
    "rate": run(training=replace(training, optimizer=replace(optimizer, learning_rate=1e-3))),
    "warmup": run(training=replace(training, optimizer=replace(optimizer, warmup_ratio=0.5))),
    "epochs": run(training=replace(training, epochs=1)),
    "batch": run(training=replace(training, global_batch_size=4)),
    "engine": run(training=replace(training, engine="torch")),
    "stage": run(training=replace(training, zero_stage=3)),
    "features": run(training=replace(training, cache_features="off")),
    "workers": run(cluster=ClusterConfig(num_workers=2)),
    "threads": run(cluster=ClusterConfig(threads_per_worker=7)),
    "train rows": run(stream=StreamConfig(size="nano", order=ORDER, train_limit=24)),
    "data seed": run(stream=StreamConfig(size="nano", order=ORDER, data_seed=1)),
}


@pytest.mark.parametrize("what", LEARNS_ALIKE)
def test_runs_that_learn_alike_share(what: str) -> None:
    assert keys(LEARNS_ALIKE[what]) == plain_keys()


@pytest.mark.parametrize("what", LEARNS_OTHERWISE)
def test_runs_that_differ_in_anything_else_share_nothing(what: str) -> None:
    assert not set(keys(LEARNS_OTHERWISE[what])) & set(plain_keys())


def test_replay_differs_once_its_stored_rows_do() -> None:
    replay = METHODS["replay"].tiny()
    one, other = (keys(run(method=replace(replay, samples_per_task=count))) for count in (2, 3))
    assert not set(one) & set(other)


def test_what_trains_nothing_has_no_place() -> None:
    assert keys(run(method=METHODS["zero_shot"]())) == [None] * 3
    first, *later = keys(run(method=METHODS["frozen"]()))
    assert first is not None
    assert later == [None, None]
    assert [key is None for key in keys(run(method=METHODS["joint"]()))] == [True, True, False]


def test_a_task_is_left_whole_and_found(tmp_path: Path) -> None:
    cached = CachedTask(folder=tmp_path / "shared" / "key")
    with cached.lock(wait_s=5):
        assert not cached.hit()
        cached.put({"method_structure": {"a": 1}}, {"method": {"w": torch.ones(3)}})
    assert cached.hit()
    stored = cached.read()
    assert stored.state["method_structure"] == {"a": 1}
    assert torch.equal(stored.tensors["method"]["w"], torch.ones(3))
    (cached.folder / "method.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="checksum"):
        cached.read()
