"""Which checkpoint Ray Train continues from, by its own reading of its list, after each kind of damage."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray.air.config import CheckpointConfig
from ray.train import Checkpoint
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.training_report import _TrainingReport

from components.core.checkpoint import read_checkpoint, write_checkpoint
from components.core.errors import CheckpointError
from components.core.events import Event, Note
from components.data.stream_config import StreamConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.config import BackboneConfig
from components.tracking.config import TrackingConfig
from components.training.config import RunConfig, TrainingConfig
from components.training.plan import Plan, plan_stream
from components.training.restoring import restore
from components.training.stream_state import Checkpoints, StreamState

LIST = "checkpoint_manager_snapshot.json"
OLDER, NEWER, KEPT = "checkpoint_2026-01-01_00-00-01", "checkpoint_2026-01-01_00-00-02", "checkpoints/01-docvqa"
UPDATES = 4  # of a task


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    config = RunConfig(
        run_id="r",
        storage=tmp_path_factory.mktemp("runs"),
        stream=StreamConfig(size="nano", order=("docvqa", "iconqa")),
        backbone=BackboneConfig(name="pocket"),
        method=SequentialLoraConfig(rank=4),
        training=TrainingConfig(updates_per_task=UPDATES),
        tracking=TrackingConfig(enabled=False),
    )
    return plan_stream(config)


@pytest.fixture
def plan(planned: Plan) -> Plan:
    """One task is learned; of the second, checkpoints after updates 1 and 3 are there and listed by Ray Train."""
    shutil.rmtree(planned.run_dir, ignore_errors=True)
    saved(planned.run_dir / KEPT, StreamState(index=0, update=UPDATES, learned=True))
    saved(planned.run_dir / OLDER, StreamState(index=1, update=1))
    saved(planned.run_dir / NEWER, StreamState(index=1, update=3))
    listed(planned.run_dir, {OLDER: 1, NEWER: 3})
    return planned


def saved(folder: Path, at: StreamState) -> None:
    folder.mkdir(parents=True)
    write_checkpoint(folder, {"stream_state": at.to_json()}, {"method": {"a": torch.full((9,), float(at.update))}})


def manager(run_dir: Path) -> CheckpointManager:
    storage = StorageContext(storage_path=str(run_dir.parent), experiment_dir_name=run_dir.name)
    return CheckpointManager(CheckpointConfig(num_to_keep=2), storage)


def listed(run_dir: Path, updates: dict[str, int]) -> None:
    async def register() -> None:
        known = manager(run_dir)
        for name, update in updates.items():
            checkpoint = Checkpoint.from_directory(run_dir / name)
            known.register_checkpoint(
                _TrainingReport(checkpoint=checkpoint, metrics={"task": 1, "update": update}, validation=False)
            )

    asyncio.run(register())


def restored(plan: Plan) -> tuple[str | None, list[str]]:
    """The checkpoint that Ray Train continues from, and what was said."""
    said: list[Event] = []
    seen = Checkpoints(plan.run_dir, lambda folder, error: None, digest_up_to=0).newest()  # as `littoral status` looks
    at = restore(plan, said.append)
    assert at == (None if seen is None else seen.at)
    latest = manager(plan.run_dir).latest_checkpoint_result
    texts = [event.text for event in said if isinstance(event, Note)]
    assert len(texts) == len(said) <= 1
    if latest is None or at is None:
        assert latest is at is None
        return None, texts
    assert latest.checkpoint is not None
    checkpoint = read_checkpoint(Path(latest.checkpoint.path))
    assert StreamState.of(checkpoint) == at
    assert torch.equal(checkpoint.tensors["method"]["a"], torch.full((9,), float(at.update)))
    return Path(latest.checkpoint.path).name, texts


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "tensors cut": lambda run: cut(run / NEWER / "method.safetensors"),
    "tensors gone": lambda run: (run / NEWER / "method.safetensors").unlink(),
    "state cut": lambda run: cut(run / NEWER / "state.json"),
    "state empty": lambda run: (run / NEWER / "state.json").write_text(""),
    "state gone": lambda run: (run / NEWER / "state.json").unlink(),
    "state of another shape": lambda run: (run / NEWER / "state.json").write_text("[]"),
    "folder gone": lambda run: shutil.rmtree(run / NEWER),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_one_before_is_used_and_the_loss_is_told(plan: Plan, damage: Callable[[Path], object]) -> None:
    damage(plan.run_dir)
    name, (text,) = restored(plan)
    assert name == OLDER
    assert text.startswith(f"{NEWER} of run r is ")
    assert text.endswith(f"the run continues from {OLDER}, and 2 updates are made again")
    assert "\n" not in text
    assert not (plan.run_dir / NEWER).exists()
    assert restored(plan) == (OLDER, [])  # told once


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"ray_version": "1"}', None])
def test_rays_list_does_not_matter(plan: Plan, content: str | None) -> None:
    if content is None:
        (plan.run_dir / LIST).unlink()
    else:
        (plan.run_dir / LIST).write_text(content)
    name, said = restored(plan)
    assert name == NEWER
    assert [text.rpartition(", and ")[2] for text in said] == ["no update is lost"] * (content is not None)
    assert restored(plan) == (NEWER, [])


def test_a_whole_one_that_no_list_names_counts(plan: Plan) -> None:
    saved(plan.run_dir / "checkpoint_2025-01-01_00-00-00", StreamState(index=1, update=4))  # a clock went back
    assert restored(plan) == ("checkpoint_2025-01-01_00-00-00", [])
    assert len(list(plan.run_dir.glob("checkpoint_2*"))) == 2


def test_one_that_was_to_be_removed_is(plan: Plan) -> None:
    """A process was killed when it had listed a newer one and not yet removed this."""
    saved(plan.run_dir / "checkpoint_2026-01-01_00-00-00", StreamState(index=1, update=0))
    before = (plan.run_dir / LIST).read_bytes()
    assert restored(plan) == (NEWER, [])
    assert sorted(path.name for path in plan.run_dir.glob("checkpoint_2*")) == [OLDER, NEWER]
    assert (plan.run_dir / LIST).read_bytes() == before


def test_an_unfinished_copy_is_nothing(plan: Plan) -> None:
    (plan.run_dir / "checkpoint_2026-01-01_00-00-03").mkdir()
    before = (plan.run_dir / LIST).read_bytes()
    assert restored(plan) == (NEWER, [])
    assert (plan.run_dir / LIST).read_bytes() == before
    assert sorted(path.name for path in plan.run_dir.glob("checkpoint_2*")) == [OLDER, NEWER]


def test_at_last_the_learned_task(plan: Plan) -> None:
    for name in (OLDER, NEWER):
        cut(plan.run_dir / name / "method.safetensors")
    before = sorted((plan.run_dir / KEPT).iterdir())
    name, (text,) = restored(plan)
    assert name is not None
    assert name not in (OLDER, NEWER)
    assert text.endswith("(and 1 more); the run continues from 01-docvqa, and 3 updates are made again")
    assert sorted((plan.run_dir / KEPT).iterdir()) == before


def test_nothing_whole_begins_again(plan: Plan) -> None:
    for file in plan.run_dir.glob("*/**/method.safetensors"):
        cut(file)
    name, (text,) = restored(plan)
    assert name is None
    assert text.endswith("(and 2 more); nothing else is left, and the run begins again at task 1")


def test_what_cannot_be_read_now_is_not_given_up(plan: Plan) -> None:
    """A folder in the place of the file: opening it fails as a lost mount does, and it may come back."""
    for name in (OLDER, NEWER, KEPT):
        (plan.run_dir / name / "state.json").unlink()
        (plan.run_dir / name / "state.json").mkdir()
    with pytest.raises(CheckpointError) as refused:
        restore(plan, lambda _: None)
    assert "use another --run-id" in str(refused.value)


def test_a_new_run_has_none(plan: Plan) -> None:
    shutil.rmtree(plan.run_dir)
    plan.run_dir.mkdir()
    assert restored(plan) == (None, [])


def test_rays_own_list_stays_as_it_is(plan: Plan) -> None:
    before = json.loads((plan.run_dir / LIST).read_text())
    assert restored(plan) == (NEWER, [])
    assert json.loads((plan.run_dir / LIST).read_text()) == before
