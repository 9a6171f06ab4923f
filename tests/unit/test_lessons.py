"""Which rows each position of a stream is learned from, and in how many updates."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from components.core.errors import ConfigError
from components.data.rows import Split
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream, stored_rows
from components.data.tasks import TaskStream
from components.methods import METHODS
from components.models.config import BackboneConfig
from components.training.config import ClusterConfig, RunConfig, TrainingConfig
from components.training.schedule import plan_schedule, require_equal_passes
from components.training.streaming import Loader, examples
from components.training.windows import Slice, plan_windows, stretches_of

POCKET = BackboneConfig(name="pocket")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StreamConfig:
    """Two nano tasks, so that the whole set is 64 training rows."""
    return StreamConfig(size="nano", order=("docvqa", "iconqa"), data_dir=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stream(config: StreamConfig) -> TaskStream:
    return open_stream(config)


def run(config: StreamConfig, method: str, **training: int) -> RunConfig:
    options = METHODS[method].tiny()  # replay's stores 8 rows a task
    return RunConfig(stream=config, backbone=POCKET, method=options, training=TrainingConfig(**training))


def sizes(config: StreamConfig, stream: TaskStream, method: str, **training: int) -> list[tuple[int, int, bool]]:
    schedule = plan_schedule(run(config, method, **training), stream)
    assert [scheduled.task.name for scheduled in schedule] == stream.task_names
    return [(scheduled.num_rows, scheduled.num_updates, scheduled.scored) for scheduled in schedule]


def test_rows_and_updates_of_every_kind(config: StreamConfig, stream: TaskStream) -> None:
    assert sizes(config, stream, "sequential_lora") == [(32, 4, True), (32, 4, True)]
    assert sizes(config, stream, "zero_shot") == [(32, 0, True), (32, 0, True)]
    assert sizes(config, stream, "frozen") == [(32, 4, True), (32, 0, True)]
    assert sizes(config, stream, "joint") == [(32, 0, False), (64, 8, True)]
    assert sizes(config, stream, "replay") == [(32, 4, True), (40, 5, True)]


def test_rows_that_a_fixed_budget_never_reaches_are_counted(config: StreamConfig, stream: TaskStream) -> None:
    def unseen(method: str, **training: int) -> list[int]:
        return [each.unseen_rows(8) for each in plan_schedule(run(config, method, **training), stream)]

    assert unseen("sequential_lora") == [0, 0]
    assert unseen("sequential_lora", updates_per_task=3) == [8, 8]
    assert unseen("sequential_lora", updates_per_task=9) == [0, 0]
    assert unseen("zero_shot", updates_per_task=3) == [0, 0], "nothing is trained, so nothing is missed"


def test_a_fixed_budget_is_the_same_for_all_methods_that_learn_every_task(
    config: StreamConfig, stream: TaskStream
) -> None:
    for method in ("sequential_lora", "replay", "individual", "continual_llava"):
        assert [updates for _, updates, _ in sizes(config, stream, method, updates_per_task=7)] == [7, 7]
    assert [updates for _, updates, _ in sizes(config, stream, "joint", updates_per_task=7)] == [0, 14]


def test_a_task_smaller_than_a_batch_is_refused(config: StreamConfig, stream: TaskStream) -> None:
    with pytest.raises(ConfigError, match="task docvqa has fewer training rows than"):
        plan_schedule(run(config, "sequential_lora", global_batch_size=64), stream)


def test_stored_rows_are_a_seeded_choice_of_whole_rows(config: StreamConfig, stream: TaskStream) -> None:
    split = stream.tasks[0].train
    stored = stored_rows(config, split, 8, seed=0)
    rows = {row.sample_id: row for row in split.rows()}
    kept = list(stored.rows())
    assert len(kept) == 8
    assert all(rows[row.sample_id] == row for row in kept)
    assert stored_rows(config, split, 8, seed=0).digest == stored.digest
    assert stored_rows(config, split, 8, seed=1).digest != stored.digest
    assert stored_rows(config, split, 32, seed=0) is split


def ids(splits: tuple[Split, ...], num_rows: int) -> list[str]:
    loader = Loader(splits=splits, backbone=POCKET, mode="train", slice=Slice(), num_rows=num_rows)
    windows = plan_windows(splits, epochs=1, num_rows=num_rows, seed=0)
    blocks = loader({"stretch": np.array(stretches_of(windows), dtype=object)})
    return [example.sample_id for block in blocks for example in examples(block.to_pylist())]


def test_replayed_rows_are_mixed_into_the_new_tasks(config: StreamConfig, stream: TaskStream) -> None:
    scheduled = plan_schedule(run(config, "replay"), stream)[1]
    order = ids(scheduled.splits, scheduled.num_rows)
    stored = {row.sample_id for row in scheduled.splits[1].rows(with_image=False)}
    new = {row.sample_id for row in stream.tasks[1].train.rows(with_image=False)}
    assert set(order) == stored | new
    assert len(order) == 40
    places = [place for place, sample in enumerate(order) if sample in stored]
    assert places[0] < 20 <= places[-1]  # in both halves: mixed, not appended
    assert not Path(scheduled.splits[1].path).is_relative_to(stream.tasks[0].train.path)


def test_a_vision_tower_that_only_some_workers_run_is_refused(config: StreamConfig) -> None:
    """ScienceQA has rows without a picture: without cached features, ZeRO-3's workers would wait for each other."""
    mixed = StreamConfig(name="mini-coin", size="nano", order=("scienceqa",), data_dir=config.data_dir)

    def check(stream: StreamConfig, stage: Literal[2, 3], num_workers: int) -> None:
        run = RunConfig(
            stream=stream,
            backbone=POCKET,
            method=METHODS["sequential_lora"].tiny(),
            training=TrainingConfig(zero_stage=stage, cache_features="off"),
            cluster=ClusterConfig(num_workers=num_workers),
        )
        require_equal_passes(run, plan_schedule(run, open_stream(stream)))

    with pytest.raises(ConfigError, match="scienceqa has rows with and without a picture"):
        check(mixed, 3, 2)
    check(mixed, 2, 2)
    check(mixed, 3, 1)
    check(config, 3, 2)
