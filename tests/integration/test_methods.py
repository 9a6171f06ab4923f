"""Methods through the real loop: Ray Data, Ray Train and DeepSpeed on mini-CoIN at nano size with the pocket model.

    python -m pytest tests/integration/test_methods.py                   # one of each kind, two tasks
    python -m pytest tests/integration/test_methods.py --every-method    # all, eight tasks, one and two workers

One Ray session serves all of them; no MLflow here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from components.core.events import Event, RowScored, StepDone
from components.core.ray_session import ray_session
from components.methods import METHODS
from components.training.config import ClusterConfig, RunConfig
from components.training.driver import run_stream
from components.training.plan import plan_stream
from pipelines.presets import coin_nano

# Each takes another way through the loop: one scheduled task for all, a calibration before the engine.
KINDS = {"joint": 2, "keep_lora": 1}  # with the number of workers


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("--every-method")
    if metafunc.function is test_each_kind_learns_and_scores_the_stream:
        metafunc.parametrize(("name", "num_workers"), KINDS.items())
    elif "name" in metafunc.fixturenames:
        metafunc.parametrize("name", METHODS if every else ())
        metafunc.parametrize("num_workers", (1, 2))


def config_of(name: str, storage: Path, num_workers: int) -> RunConfig:
    """The preset `coin-nano` with this method, cut short."""
    preset = coin_nano()
    return replace(
        preset,
        run_id=f"{name.replace('_', '-')}-{num_workers}",
        storage=storage,
        stream=replace(preset.stream, test_limit=6),
        method=METHODS[name].tiny(),
        training=replace(preset.training, updates_per_task=4, checkpoint_every_updates=3),
        evaluation=replace(preset.evaluation, zero_shot=False),
        cluster=ClusterConfig(num_workers=num_workers),
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("methods")
    with ray_session(None, num_workers=2):
        yield folder


def test_every_method_learns_mini_coin(name: str, num_workers: int, storage: Path) -> None:
    check(config_of(name, storage, num_workers))


def test_each_kind_learns_and_scores_the_stream(name: str, num_workers: int, storage: Path) -> None:
    config = config_of(name, storage, num_workers)
    check(replace(config, run_id=f"{name}-two-tasks", stream=replace(config.stream, order=("gqa", "scienceqa"))))


def test_more_workers_than_the_cluster_holds(storage: Path) -> None:
    greedy = ClusterConfig(num_workers=2, use_gpu=True)
    plan = plan_stream(replace(config_of("joint", storage, 1), run_id="greedy", cluster=greedy))
    with pytest.raises(ConfigError, match="each with a GPU, and the number of GPUs in the cluster is 0"):
        run_stream(plan, lambda _: None)


def check(config: RunConfig) -> None:
    """The planned updates were made, every row scored, and oracle routing forgets no more than the method's own."""
    plan = plan_stream(config)
    tasks = list(plan.stream.task_names)
    events: list[Event] = []
    result = run_stream(plan, events.append)
    steps = [(event.task, event.update) for event in events if isinstance(event, StepDone)]
    rows = {event.after: event for event in events if isinstance(event, RowScored)}
    expected = {"each": dict.fromkeys(tasks, 4), "first": {tasks[0]: 4}, "union": {tasks[-1]: 4 * len(tasks)}}
    planned = expected[config.method.data_scope] if config.method.is_trainable else {}
    assert steps == [(task, update) for task, total in planned.items() for update in range(1, total + 1)]
    assert result.matrix.after == tasks
    assert list(rows) == (tasks[-1:] if config.method.data_scope == "union" else tasks)
    assert all(score is not None for score in rows[tasks[-1]].scores.values())
    assert "final_average" in result.matrix.summary()
    if config.method.build(seed=0).is_routed:
        assert result.oracle is not None
        assert rows[tasks[-1]].slot_usage is not None
