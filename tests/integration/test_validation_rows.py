"""What a planned run reads: no validation row is learned from or put into the vision cache unless it is scored.

python -m pytest tests/integration/test_validation_rows.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from components.data.instructions import Instructions
from components.data.rows import Split
from components.data.stream_config import StreamConfig
from components.methods import METHODS
from components.models.config import BackboneConfig
from components.training.config import EvaluationConfig, RunConfig
from components.training.driver import rows_reached
from components.training.plan import Plan, plan_stream

TASKS = ("iconqa", "chartqa")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("run")
    return RunConfig(
        run_id="one",
        storage=folder,
        stream=StreamConfig(size="nano", order=TASKS, data_dir=folder / "data", validation=0.3),
        backbone=BackboneConfig(name="pocket"),
    )


def pictures(splits: list[Split]) -> set[bytes]:
    return {row.image for split in splits for row in split.rows() if row.image is not None}


def reached(plan: Plan) -> set[bytes]:
    return pictures([split for split, _ in rows_reached(plan)])


@pytest.mark.parametrize("name", ["sequential_lora", "continual_llava", "lcia", "replay", "joint", "cf_router"])
def test_neither_learning_nor_the_cache_sees_validation_rows(config: RunConfig, name: str) -> None:
    plan = plan_stream(replace(config, method=METHODS[name].tiny()))
    held = [task.unscored for task in plan.stream.tasks if task.unscored is not None]
    assert len(held) == len(TASKS)
    learned = [split for scheduled in plan.schedule for split in scheduled.splits]
    assert pictures(held).isdisjoint(pictures(learned))
    assert pictures(held).isdisjoint(reached(plan))
    # what stage 1, groups and prototypes are told
    instructions = Instructions(learned)
    assert sorted(instructions) == sorted(row.instruction for split in learned for row in split.rows(with_image=False))


def test_scored_validation_rows_are_in_the_cache_and_still_not_learned_from(config: RunConfig) -> None:
    plan = plan_stream(replace(config, evaluation=EvaluationConfig(split="validation")))
    held = [task.test for task in plan.stream.tasks]
    assert {split.split for split in held} == {"validation"}
    assert pictures(held) <= reached(plan)
    assert pictures(held).isdisjoint(pictures([split for scheduled in plan.schedule for split in scheduled.splits]))
    tests = [task.unscored for task in plan.stream.tasks if task.unscored is not None]
    assert len(tests) == len(TASKS)
    assert pictures(tests).isdisjoint(reached(plan))
