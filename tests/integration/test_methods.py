"""Methods through the real loop: Ray Data, Ray Train with two DeepSpeed workers, a stream of two small tasks.

    python -m pytest tests/integration/test_methods.py                   # one of each kind
    python -m pytest tests/integration/test_methods.py --every-method    # all: half a minute each

One Ray session serves all of them; no MLflow here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.data.streams import StreamConfig
from components.events import Event, RowScored, StepDone
from components.methods import METHODS
from components.models.backbone import BackboneConfig
from components.training.config import ClusterConfig, EvaluationConfig, RunConfig, TrainingConfig
from components.training.launch import plan_stream, ray_session, run_stream

TASKS = ("iconqa", "medicalqa")
# Each takes another way through the loop: lessons, a task that is told, steps of its own, prompts.
KINDS = ("frozen", "individual", "joint", "replay", "lcia", "coda_prompt")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", METHODS if metafunc.config.getoption("--every-method") else KINDS)


def config_of(name: str, storage: Path) -> RunConfig:
    return RunConfig(
        run_id=name.replace("_", "-"),
        storage=storage,
        stream=StreamConfig(size="nano", order=TASKS, test_limit=6),
        backbone=BackboneConfig(name="pocket"),
        method=METHODS[name].tiny(),
        training=TrainingConfig(updates_per_task=4, checkpoint_every_updates=3),
        evaluation=EvaluationConfig(zero_shot=False, oracle_routing=True),
        cluster=ClusterConfig(num_workers=2),
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("methods")
    with ray_session(config_of("zero_shot", folder)):
        yield folder


def test_two_workers_learn_and_score_the_stream(name: str, storage: Path) -> None:
    config = config_of(name, storage)
    events: list[Event] = []
    result = run_stream(plan_stream(config), events.append)
    steps = [(event.task, event.update) for event in events if isinstance(event, StepDone)]
    rows = {event.after: event for event in events if isinstance(event, RowScored)}
    expected = {"each": {TASKS[0]: 4, TASKS[1]: 4}, "first": {TASKS[0]: 4}, "union": {TASKS[1]: 8}}
    planned = expected[config.method.learns_from] if config.method.trains else {}
    assert steps == [(task, update) for task, total in planned.items() for update in range(1, total + 1)]
    assert result.matrix.after == list(TASKS)
    assert list(rows) == ([TASKS[1]] if config.method.learns_from == "union" else list(TASKS))
    assert all(score is not None for score in rows[TASKS[1]].scores.values())
    assert "final_average" in result.matrix.summary()
    if config.method.build(seed=0).routes:
        assert result.oracle is not None
        assert result.oracle.forgetting() <= result.matrix.forgetting() or result.oracle.forgetting() == 0.0
