"""Checkpoints in a store: what has a marker is whole and to the bit, whatever fails while the next one is written."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from failing_store import Store
from torch import Tensor

from components.core.checkpoint import read_checkpoint, write_checkpoint
from components.core.checkpoint_files import OLD_S, remove_unreferenced, tensor_file
from components.core.errors import CheckpointError, StorageError
from components.core.files import whole_folder
from components.core.location import Location
from components.core.lock import sole_user
from components.core.run_files import STATE_FILE
from components.core.tensor_store import TensorStore
from components.training.stream_state import Checkpoints, StreamState

KINDS = pytest.mark.parametrize("whole_puts", [True, False], ids=["puts", "moves"])


def state_after(number: int) -> dict[str, Tensor]:
    """Every task adds a tensor that stays, and replaces one that all share."""
    groups = {f"group.{each}": torch.full((3,), float(each)) for each in range(number)}
    return {**groups, "shared": torch.arange(2.0) * number}


def keep(run: Location, store: TensorStore, number: int, version: float = 0.0) -> Location:
    """A learned task's checkpoint as a run writes it; `version` makes another one of the same task."""
    folder = run / "checkpoints" / f"{number:02d}-t"
    tensors = {**state_after(number), "version": torch.tensor(version)}
    shared = {"method": store.put(tensors)}
    with whole_folder(folder, durable=True, replace=True, last=STATE_FILE) as made:
        write_checkpoint(made, {"stream_state": StreamState(index=number).to_json()}, {}, shared)
    return folder


def right(run: Location, number: int) -> float:
    """The version of a checkpoint, every tensor of which has the bits that were put."""
    found = read_checkpoint(run / "checkpoints" / f"{number:02d}-t").tensors["method"]
    version = float(found.pop("version"))
    wanted = state_after(number)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    return version


@KINDS
def test_a_stream_of_them_costs_what_changes_and_is_read_to_the_bit(whole_puts: bool) -> None:
    store = Store(whole_puts=whole_puts)
    run = store.place("b/runs/first")
    tensors = TensorStore(run, "method")
    sizes: list[int] = []
    for number in range(1, 5):
        before = {*store.files}
        keep(run, tensors, number)
        sizes.append(sum(len(store.files[name]) for name in store.files.keys() - before if "/tensors/" in name))
    assert len({*sizes[1:]}) == 1
    assert [right(run, number) for number in range(1, 5)] == [0.0] * 4
    found = Checkpoints(run, lambda folder, error: pytest.fail(f"{folder}: {error}")).newest()
    assert found is not None
    assert (found.folder.name, found.at.index) == ("04-t", 4)


@KINDS
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_whatever_fails_every_marker_stands_for_a_whole_checkpoint(whole_puts: bool, after: bool) -> None:
    ends: set[str] = set()
    for number in range(1, 500):
        store = Store(whole_puts=whole_puts, piece=256)
        run = store.place("b/runs/first")
        tensors = TensorStore(run, "method")
        keep(run, tensors, 1)
        keep(run, tensors, 2)
        with store.failing(number, after=after, gone=True):
            try:
                keep(run, tensors, 2, version=1.0)
                keep(run, tensors, 3)
            except StorageError:
                pass
        ended = number > len(store.done)
        assert right(run, 1) == 0.0
        there = [each for each in (2, 3) if (run / "checkpoints" / f"{each:02d}-t" / STATE_FILE).is_file()]
        versions = [right(run, each) for each in there]
        ends.add(str(versions))
        # A new process goes on from the newest whole one and comes to the same end.
        again = TensorStore(run, "method")
        again.remember(read_checkpoint(run / "checkpoints" / "01-t"))
        keep(run, again, 2, version=1.0)
        keep(run, again, 3)
        assert (right(run, 2), right(run, 3)) == (1.0, 0.0)
        if ended:
            break
    else:
        pytest.fail("it never ended")
    assert {"[0.0]", "[1.0]", "[1.0, 0.0]"} <= ends


def test_a_shared_file_that_is_cut_or_gone_damages_those_that_need_it() -> None:
    store = Store(whole_puts=True)
    run = store.place("b/runs/first")
    tensors = TensorStore(run, "method")
    keep(run, tensors, 1)
    before = {name for name in store.files if "/tensors/" in name}
    keep(run, tensors, 2)
    (new,) = (name for name in store.files if "/tensors/" in name and name not in before)
    whole = store.files[new]
    for content in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        store.files[new] = content
        with pytest.raises(CheckpointError, match=r"first/tensors/[0-9a-f]{64}\.safetensors is missing"):
            read_checkpoint(run / "checkpoints" / "02-t")
        assert right(run, 1) == 0.0
    del store.files[new]
    with pytest.raises(CheckpointError, match="is missing or differs"):
        read_checkpoint(run / "checkpoints" / "02-t")
    found = Checkpoints(run, lambda folder, error: None).newest()
    assert found is not None
    assert found.folder.name == "01-t"


def test_what_is_unreferenced_is_removed_when_it_is_old_and_not_before() -> None:
    store = Store(whole_puts=True)
    run = store.place("b/runs/first")
    tensors = TensorStore(run, "method")
    keep(run, tensors, 1)
    lost = tensors.put({"lost": torch.ones(3)})
    (digest,) = (digest for digest, left_out in lost.items() if left_out == [])
    file = tensor_file(run, digest)
    with sole_user(run, "run first"):
        remove_unreferenced(run)
        assert file.is_file()  # its checkpoint may not be listed yet
        for name in store.written:
            if "/.lock/" not in name:
                store.written[name] -= timedelta(seconds=OLD_S + 60)
        remove_unreferenced(run)
        assert not file.is_file()
    assert right(run, 1) == 0.0


def test_a_checkpoint_that_is_not_listed_yet_keeps_its_files() -> None:
    store = Store(whole_puts=True)
    run = store.place("b/runs/first")
    tensors = TensorStore(run, "method")
    keep(run, tensors, 1)
    store.listed = {*store.files}
    keep(run, tensors, 2)
    remove_unreferenced(run)
    store.listed = {name for name in store.files if "checkpoints/02" not in name}
    remove_unreferenced(run)
    assert right(run, 2) == 0.0


def test_looking_for_what_is_unreferenced_opens_no_folder_by_itself() -> None:
    store = Store(whole_puts=True)
    run = store.place("b/runs/first")
    tensors = TensorStore(run, "method")
    asked: list[int] = []
    for number in range(1, 3):
        keep(run, tensors, number)
        for folder in range(20):
            (run / f"predictions/{number:02d}-{folder}" / "rows.parquet").put(b"-")
        store.done.clear()
        remove_unreferenced(run)
        asked.append(store.done.count("list"))
    assert asked == [3, 3]  # the run, its tensors and its lock
