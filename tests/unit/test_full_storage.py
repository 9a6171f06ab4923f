"""A full, read-only or lost storage is one sentence, and what was whole there stays whole."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_storage import tmpfs

from components.core.checkpoint import read_checkpoint, write_checkpoint
from components.core.errors import LittoralError, StorageError
from components.core.events import Event, Note, TaskStarted
from components.core.files import storing, whole_folder, write_text
from components.core.tensor_store import TensorStore
from components.evaluation.predictions import Prediction, write_predictions
from components.runs.costs import Costs
from components.runs.execute import recorded_as
from components.runs.records import set_damaged_aside
from components.tracking.config import TrackingConfig
from components.tracking.sender import QueuedTracker
from components.tracking.store import open_tracker
from components.tracking.tracker import StreamTracker
from components.training.needs import needs_of
from components.training.plan import plan_stream
from components.training.space import close_to_full, require_space, saying_what_is_needed, space_of
from pipelines.presets import pocket


def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "64k") as folder:
        write_text(folder / "a.json", "old")
        rows = [Prediction(after="x", task="t", sample_id=f"{n}{n * 7}" * 20, score=1.0) for n in range(20_000)]
        for write in (
            lambda: write_text(folder / "a.json", "n" * 100_000),
            lambda: write_predictions(folder / "a.json", rows),
        ):
            with pytest.raises(StorageError) as full:
                write()
            assert str(full.value).startswith(f"{folder / 'a.json'} cannot be written (No space left on device, ")
            assert str(full.value).endswith(" free); make room there and give the same command again.")
            assert full.value.errno == errno.ENOSPC
            assert (folder / "a.json").read_text() == "old"
            assert [path.name for path in folder.iterdir()] == ["a.json"]


def test_a_checkpoint_in_the_making_costs_no_other(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "200k") as folder:
        keep(folder / "checkpoint", 10_000)
        with pytest.raises(StorageError, match="No space left on device"):
            keep(folder / "checkpoint", 100_000)
        assert read_checkpoint(folder / "checkpoint").state["number"] == 10_000
        assert [path.name for path in folder.iterdir()] == ["checkpoint"]


def test_a_shared_file_in_the_making_costs_no_other(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "200k") as run:
        store, kept = TensorStore(run, "method"), run / "checkpoints" / "01-t"
        kept.mkdir(parents=True)
        write_checkpoint(kept, {}, {}, {"method": store.put({"a": torch.ones(10_000)})})
        before = {path for path in run.rglob("*") if path.is_file()}
        with pytest.raises(
            StorageError, match=r"tensors cannot be written \(No space left on device, .* free\); make room"
        ):
            store.put({"a": torch.ones(10_000), "b": torch.ones(100_000)})
        assert {path for path in run.rglob("*") if path.is_file()} == before
        kept.rename(kept.with_name("02-t"))
        kept.mkdir()
        write_checkpoint(kept, {}, {}, {"method": store.put({"a": torch.ones(10_000), "b": torch.ones(9)})})
        assert read_checkpoint(kept).tensors["method"]["b"].tolist() == [1.0] * 9


def keep(folder: Path, number: int) -> None:
    with whole_folder(folder, durable=True, replace=True) as partial:
        write_checkpoint(partial, {"number": number}, {"method": {"a": torch.ones(number)}})


def test_a_read_only_storage_is_a_sentence(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "64k") as folder:
        write_text(folder / "a.json", "old")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(StorageError, match=r"\(Read-only file system\); make it writable and give the same"):
            write_text(folder / "a.json", "new")
        assert (folder / "a.json").read_text() == "old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EIO])
def test_what_a_storage_says_is_told_once(tmp_path: Path, number: int) -> None:
    with pytest.raises(StorageError) as told, storing(tmp_path / "outer"), storing(tmp_path / "inner"):
        raise OSError(number, "as the system says it")
    assert str(told.value).startswith(f"{tmp_path / 'inner'} cannot be written (")
    assert isinstance(told.value, LittoralError)
    with pytest.raises(FileNotFoundError), storing(tmp_path):
        (tmp_path / "nowhere").read_bytes()


def test_the_plan_knows_the_room_that_is_needed(tmp_path: Path) -> None:
    config = replace(pocket(), run_id="r", storage=tmp_path / "small", tracking=TrackingConfig(enabled=False))
    with tmpfs(tmp_path / "small", "64k"):
        plan = plan_stream(config)
        needs = needs_of(plan)
        space = space_of(plan, needs)
        assert 0 < (space.free or 0) <= 65536 < space.needed
        assert close_to_full(space) is not None
        with pytest.raises(StorageError, match=r"this run needs about .* more in .*small, where 6\d kB are free; make"):
            require_space(plan, needs)
        with (
            pytest.raises(StorageError, match=r"needs about .* more there") as told,
            saying_what_is_needed(plan, needs),
        ):
            raise RuntimeError from OSError(errno.ENOSPC, "No space left on device")
        assert "\n" not in str(told.value)
    with pytest.raises(RuntimeError), saying_what_is_needed(plan, needs):
        raise RuntimeError


def test_damaged_records_are_set_aside(tmp_path: Path) -> None:
    said: list[Event] = []
    (tmp_path / "costs.json").write_text('{"rows": 5}')
    (tmp_path / "made_with.json").write_text('{"sessions"')
    (tmp_path / "mlflow.json").write_text(json.dumps({"run_id": "a", "ui": "b"}))
    set_damaged_aside(tmp_path, recorded_as, said.append)
    texts = [event.text for event in said if isinstance(event, Note)]
    assert [text.partition(" ")[0] for text in texts] == ["costs.json", "made_with.json"]
    assert (tmp_path / "costs.json.damaged").read_text() == '{"rows": 5}'
    assert Costs.read(tmp_path) == Costs()
    set_damaged_aside(tmp_path, recorded_as, said.append)
    assert len(said) == 2
    (tmp_path / "mlflow.json").write_text("[]")
    set_damaged_aside(tmp_path, recorded_as, said.append)
    assert recorded_as(tmp_path) is None


def test_a_full_mlflow_store_is_told_in_its_own_words_and_not_waited_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[Note] = []
    with tmpfs(tmp_path / "small", "4m") as folder:
        tracker = open_tracker(TrackingConfig(), folder, "r", {}, {"stream": "s"}, on_note=said.append)
        assert isinstance(tracker, StreamTracker)
        queued = QueuedTracker(tracker, tmp_path, said.append)
        (folder / "others").write_bytes(bytes(shutil.disk_usage(folder).free))
        queued.handle(
            TaskStarted(
                index=0, task="t", num_samples=4, num_updates=2, trainable_parameters=1, total_parameters=2, start_s=0.0
            )
        )
        began = time.monotonic()
        queued.finish("FAILED")
        assert time.monotonic() - began < 100  # of the 120 s that a store is given which only does not answer
        (trouble,) = [note.text for note in said if note.text.startswith("MLflow did not record")]
        assert "((sqlite3.OperationalError) database or disk is full)" in trouble
        assert said[-1].text.startswith("MLflow does not have all of this run yet")
        assert "Traceback" not in capfd.readouterr().err
