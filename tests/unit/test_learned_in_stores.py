"""A run in a store, as export and serve read it: its newest checkpoint, by copies that are fetched once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from failing_store import Store
from finished_runs import STREAM, finished

from components.core import copies
from components.core.checkpoint import write_checkpoint
from components.core.errors import CheckpointError, ConfigError, StorageError
from components.core.files import whole_folder
from components.core.location import Location
from components.core.run_files import STATE_FILE
from components.core.tensor_store import TensorStore
from components.exporting.learned import read_learned
from components.serving.shelf import Shelf
from components.serving.watching import Watcher
from components.training.config import RunConfig

TASKS = ("docvqa", "iconqa")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(copies, "copies_dir", lambda: tmp_path / "copies")
    monkeypatch.setattr(copies, "PATIENCE_S", 0.0)


def tensors(number: int) -> dict[str, torch.Tensor]:
    return {"kept": torch.arange(4.0), "changed": torch.full((3,), float(number))}


def learn(run: Location, store: TensorStore, number: int) -> None:
    """A task's checkpoint as a run writes it."""
    shared = {"method": store.put(tensors(number))}
    facts = {"backbone": "f", "method_structure": {"tasks": [*TASKS[:number]]}}
    folder = run / "checkpoints" / f"{number:02d}-{TASKS[number - 1]}"
    with whole_folder(folder, durable=True, last=STATE_FILE) as made:
        write_checkpoint(made, facts, {"extra": {"e": torch.ones(number)}}, shared)


def score(run: Location, tmp_path: Path, rows: list[list[float | None]]) -> None:
    """The files that a run has beside its checkpoints, after so many rows."""
    (tmp_path / str(len(rows))).mkdir()
    for file in finished(tmp_path / str(len(rows)), RunConfig(run_id="first", stream=STREAM), rows).iterdir():
        (run / file.name).put(file)


@pytest.fixture
def store() -> Store:
    return Store(whole_puts=True, piece=1 << 20)


@pytest.fixture
def run(store: Store, tmp_path: Path) -> Location:
    """After both tasks."""
    run = store.place("b/runs/first")
    written = TensorStore(run, "method")
    for number in (1, 2):
        learn(run, written, number)
    score(run, tmp_path, [[40.0, None], [30.0, 60.0]])
    return run


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_any_task_is_read_to_the_bit_and_each_file_once(run: Location, store: Store) -> None:
    store.done = []
    last = read_learned(run, None, None)
    assert (last.number, last.task, last.tasks) == (2, "iconqa", [*TASKS])
    assert same(last.checkpoint.tensors["method"], tensors(2))
    first = read_learned(run, "1", None)
    assert (first.number, first.task) == (1, "docvqa")
    assert same(first.checkpoint.tensors["method"], tensors(1))
    assert same(first.checkpoint.tensors["extra"], {"e": torch.ones(1)})
    before = {name: content for name, content in store.files.items() if name.endswith(".safetensors")}
    store.files = {name: content for name, content in store.files.items() if name not in before}
    assert same(read_learned(run, "iconqa", None).checkpoint.tensors["method"], tensors(2))
    store.files |= before


def test_a_listing_that_lags_does_not_hide_what_is_scored(run: Location, store: Store) -> None:
    store.listed = {name for name in store.files if "checkpoints/02" not in name}
    assert read_learned(run, None, None).number == 2
    store.listed = {name for name in store.files if "/checkpoints/" not in name}
    assert read_learned(run, "docvqa", None).number == 1


def test_what_is_missing_or_damaged_is_one_sentence(run: Location, store: Store) -> None:
    with pytest.raises(ConfigError, match="has not learned task 'three'; it has learned 1 docvqa, 2 iconqa"):
        read_learned(run, "three", None)
    with pytest.raises(ConfigError, match="test://b/runs/other is not the folder of a run"):
        read_learned(store.place("b/runs/other"), None, None)
    for name in [name for name in store.files if "/tensors/" in name]:
        store.files[name] = store.files[name][:-1] + b"\x7f"
    with pytest.raises(CheckpointError, match=r"first/tensors/\w+\.safetensors is missing or differs from its checks"):
        read_learned(run, None, None)
    del store.files["b/runs/first/checkpoints/02-iconqa/state.json"]
    with pytest.raises(CheckpointError, match=r"tensors/\w+\.safetensors"):
        read_learned(run, None, None)  # the one after task 1: without its marker a folder is none
    del store.files["b/runs/first/checkpoints/01-docvqa/state.json"]
    with pytest.raises(ConfigError, match="test://b/runs/first has learned no task yet"):
        read_learned(run, None, None)
    with store.failing(1, after=False, gone=True), pytest.raises(StorageError, match="test://b/runs/first cannot be"):
        read_learned(run, None, None)


def test_a_newer_task_is_noticed(store: Store, tmp_path: Path) -> None:
    """Once its row is there, and has stayed for a second look; a store that is gone meanwhile changes nothing."""
    run = store.place("b/runs/first")
    written = TensorStore(run, "method")
    learn(run, written, 1)
    score(run, tmp_path, [[40.0, None]])
    config = read_learned(run, None, None).config
    shelf = Shelf(run.parent, config.backbone, torch.device("cpu"))
    watcher = Watcher(shelf, "first", shelf.find("1", "first"))
    assert [watcher.newer() for _ in range(3)] == [None] * 3
    learn(run, written, 2)
    assert [watcher.newer() for _ in range(2)] == [None] * 2
    score(run, tmp_path, [[40.0, None], [30.0, 60.0]])
    with store.failing(1, after=False, gone=True):
        assert watcher.newer() is None
    assert watcher.newer() is None
    found = watcher.newer()
    assert found is not None
    assert (found.run, found.number, found.task) == ("first", 2, "iconqa")
    assert watcher.newer() is None
