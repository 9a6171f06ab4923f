"""Of a long training split only those rows are counted that the updates reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.core.errors import DataError
from components.data.prepared import write_stream_json
from components.data.rows import Row, write_split
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.config import BackboneConfig
from components.training import measuring
from components.training.config import RunConfig, TrainingConfig
from components.training.plan import Plan, plan_stream
from components.training.streaming import Loader, examples
from components.training.windows import Slice, plan_windows, stretches_of
from tests.unit.sample_rows import row

LONG = "word " * 3000
ROWS = 1500  # two shards


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "COUNTED_WHOLE", 100)


def made(part: str, long: set[int]) -> Iterator[Row]:
    for number in range(ROWS if part == "train" else 4):
        asked = LONG if number in long else f"Which is {number}?"
        yield replace(row(asked, "red"), sample_id=f"{number}", task="a", split=part, source=f"a.json#{number}")


def planned(folder: Path, *, long: set[int], **training: int) -> Plan:
    for part in ("train", "test"):
        write_split(made(part, long if part == "train" else set()), folder / "a" / part, task="a", split=part)
    write_stream_json(folder, "s", {"a": 4})
    config = RunConfig(
        run_id="r",
        storage=folder.parent / "runs",
        stream=replace(RunConfig().stream, name=str(folder)),
        backbone=BackboneConfig(name="pocket"),
        method=SequentialLoraConfig(),
        training=TrainingConfig(global_batch_size=8, **training),
    )
    return plan_stream(config)


def learned(plan: Plan) -> set[int]:
    """Numbers of the rows that the run's own reader gives to the updates."""
    (scheduled,), seed = plan.schedule, plan.config.seed
    num_rows = scheduled.num_updates * 8
    loader = Loader(
        splits=scheduled.splits, backbone=plan.config.backbone, mode="train", slice=Slice(), num_rows=num_rows
    )
    windows = plan_windows(scheduled.splits, epochs=scheduled.num_epochs(8), num_rows=num_rows, seed=seed)
    blocks = loader({"stretch": np.array(stretches_of(windows), dtype=object)})
    return {int(each.sample_id) for block in blocks for each in examples(block.to_pylist())}


def test_rows_that_no_update_reaches_may_be_too_long(tmp_path: Path) -> None:
    plan = planned(tmp_path / "s", long=set(), updates_per_task=3)
    reached = learned(plan)
    assert len(reached) == 24
    (counted,) = measuring.rows_to_count(plan.config, plan.stream).values()
    assert counted == sorted(reached)
    others = set(range(ROWS)) - reached
    assert learned(planned(tmp_path / "others", long=others, updates_per_task=3)) == reached
    assert plan.fitted.tokens["a train"].longest < 100


def test_rows_that_an_update_reaches_are_named(tmp_path: Path) -> None:
    reached = learned(planned(tmp_path / "s", long=set(), updates_per_task=3))
    last = max(reached)
    with pytest.raises(DataError, match=rf"^1 row takes more tokens .* row {last + 1} "):
        planned(tmp_path / "one", long={last}, updates_per_task=3)


def test_a_run_over_all_rows_counts_all_of_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^2 rows take more tokens"):
        planned(tmp_path / "two", long={0, ROWS - 1}, epochs=1)
    plan = planned(tmp_path / "s", long=set(), epochs=1)
    assert measuring.rows_to_count(plan.config, plan.stream) == {}
