"""Tasks without rows, or with fewer than there are workers: one sentence before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from components.data.prepared import write_stream_json
from components.data.rows import Row, write_split
from components.data.stream_config import StreamConfig
from components.methods.base import MethodConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.methods.zero_shot import ZeroShotConfig
from components.models.config import BackboneConfig
from components.training.config import ClusterConfig, RunConfig, TrainingConfig
from components.training.driver import rows_reached
from components.training.plan import Plan, plan_stream
from tests.unit.sample_rows import picture, row

ROW = row("<image>\nWhat?", "red", image=picture((250, 0, 0)))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path / "cache"))


def planned(
    folder: Path, train: Sequence[Row], test: Sequence[Row], *, workers: int = 1, method: MethodConfig | None = None
) -> Plan:
    """Task `a` has eight rows of each kind, `b` has these; a fixed number of updates asks for as many as it takes."""
    for task, parts in (("a", {"train": [ROW] * 8, "test": [ROW] * 8}), ("b", {"train": train, "test": test})):
        for part, rows in parts.items():
            numbered = [
                replace(each, sample_id=f"{task}-{number}", task=task, split=part, source=f"x.json#{number}")
                for number, each in enumerate(rows, start=1)
            ]
            write_split(iter(numbered), folder / "s" / task / part, task=task, split=part)
    write_stream_json(folder / "s", "s", dict.fromkeys("ab", 16))
    config = RunConfig(
        run_id="r",
        storage=folder / "runs",
        stream=StreamConfig(name=str(folder / "s")),
        backbone=BackboneConfig(name="pocket", max_length=128, too_long="skip"),
        method=SequentialLoraConfig(rank=4) if method is None else method,
        training=TrainingConfig(updates_per_task=3),
        cluster=ClusterConfig(num_workers=workers),
    )
    return plan_stream(config)


@pytest.mark.parametrize(
    ("train", "test", "workers", "said"),
    [
        ([], [ROW], 1, r"^task b has no training rows; give it some, or leave it out of the stream\.$"),
        ([ROW], [], 1, r"^task b has no test rows, so it has no score; give it some"),
        ([ROW] * 3, [ROW], 4, r"^task b has 3 training rows.*, fewer than cluster\.num_workers 4, so .*; lower"),
    ],
    ids=["no training rows", "no test rows", "fewer than workers"],
)
def test_too_few_rows_are_one_sentence(
    tmp_path: Path, train: list[Row], test: list[Row], workers: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        planned(tmp_path, train, test, workers=workers)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_what_is_not_trained_needs_no_training_rows(tmp_path: Path) -> None:
    plan = planned(tmp_path, [], [ROW], method=ZeroShotConfig())
    assert [each.num_updates for each in plan.schedule] == [0, 0]


def test_as_many_rows_as_workers_are_learned_and_one_test_row_is_enough(tmp_path: Path) -> None:
    plan = planned(tmp_path, [ROW] * 2, [ROW], workers=2)
    assert [each.num_epochs(8) for each in plan.schedule] == [3, 12]  # 24 samples
    assert sum(len(rows) for _, places in rows_reached(plan) for rows in places.values()) == 8 + 8 + 2 + 1
