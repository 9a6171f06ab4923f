"""Tensors that a run's checkpoints share: written once, found again by their bits, and never taken for another's."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from components.core.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from components.core.checkpoint_files import checked, remove_unreferenced, tensor_file
from components.core.errors import CheckpointError
from components.core.files import whole_folder
from components.core.tensor_store import APART_FROM, TensorStore
from components.training.stream_state import Checkpoints, StreamState

FROZEN = {f"group.{number}": torch.full((64,), float(number)) for number in range(4)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "r"
    folder.mkdir()
    return folder


def kept(run: Path, store: TensorStore, number: int, tensors: dict[str, Tensor], own: str = "") -> Path:
    """A checkpoint of a learned task, or inside one with tensors of its own."""
    folder = run / (f"checkpoint_{number}" if own else f"checkpoints/{number:02d}-t")
    folder.mkdir(parents=True)
    state = {"stream_state": StreamState(index=number).to_json()}
    tensors_of_its_own = {own: {"w": torch.ones(2)}} if own else {}
    write_checkpoint(folder, state, tensors_of_its_own, {"method": store.put(tensors)})
    return folder


def written(run: Path) -> dict[str, int]:
    """Shared files with their sizes."""
    return {path.name: path.stat().st_size for path in (run / "tensors").iterdir()}


def stream(run: Path, tasks: int = 4) -> list[Path]:
    """Every task adds a group that stays, and replaces what all tasks share."""
    store = TensorStore(run, "method")
    return [
        kept(run, store, number, state_after(number))  # clones: as `Method.state_dict` hands them out
        for number in range(1, tasks + 1)
    ]


def state_after(number: int) -> dict[str, Tensor]:
    groups = {name: tensor.clone() for name, tensor in list(FROZEN.items())[:number]}
    return {**groups, "shared": torch.arange(8.0) * number}


def same(found: Checkpoint, tensors: dict[str, Tensor]) -> bool:
    method = found.tensors["method"]
    return method.keys() == tensors.keys() and all(torch.equal(method[name], tensors[name]) for name in tensors)


def test_what_did_not_change_is_written_once(run: Path) -> None:
    folders = stream(run)
    assert len(written(run)) == 4
    assert len(set(written(run).values())) == 1  # each task costs what the first did
    assert all(same(read_checkpoint(folder), state_after(number)) for number, folder in enumerate(folders, 1))
    assert [[path.name for path in folder.iterdir()] for folder in folders] == [["state.json"]] * 4
    for path in (run / "tensors").iterdir():
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.stat().st_mode == (folders[0] / "state.json").stat().st_mode


def test_the_same_state_costs_nothing(run: Path) -> None:
    store = TensorStore(run, "method")
    first = store.put(state_after(2))
    before = {path: path.stat().st_mtime_ns for path in (run / "tensors").iterdir()}
    assert store.put(state_after(2)) == first
    again = TensorStore(run, "method")  # a process that has seen no checkpoint, after a kill
    assert again.put(state_after(2)) == first
    assert {path: path.stat().st_mtime_ns for path in (run / "tensors").iterdir()} == before


def test_a_process_goes_on_from_what_it_has_read(run: Path) -> None:
    folders = stream(run, tasks=2)
    before = written(run)
    store = TensorStore(run, "method")
    store.remember(read_checkpoint(folders[1]))
    third = kept(run, store, 3, state_after(3))
    (new,) = written(run).keys() - before.keys()
    assert written(run)[new] in before.values()
    assert same(read_checkpoint(third), state_after(3))
    assert len(json.loads((third / "state.json").read_text())["shared"]["method"]) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.mul_(0.0).neg_(),  # zeros of the other sign
        lambda t: t.view(torch.int32).add_(1),  # the last bit
        lambda t: t.fill_(float("nan")),
    ],
    ids=["sign of zero", "last bit", "nan"],
)
def test_a_change_in_place_is_seen(run: Path, change: object) -> None:
    tensors = {"a": torch.zeros(9), "b": torch.ones(3)}
    store = TensorStore(run, "method")
    store.put(tensors)
    assert callable(change)
    change(tensors["a"])  # the very tensor that the store remembers
    found = read_checkpoint(kept(run, store, 1, tensors)).tensors["method"]
    assert found["a"].numpy().tobytes() == tensors["a"].numpy().tobytes()
    assert found["b"].equal(tensors["b"])


def test_other_types_and_shapes_of_the_same_bits_are_others(run: Path) -> None:
    store = TensorStore(run, "method")
    store.put({"a": torch.zeros(4), "b": torch.zeros(4), "c": torch.tensor(1.0), "d": torch.empty(0)})
    tensors = {"a": torch.zeros(2, 2), "b": torch.zeros(4, dtype=torch.int32), "c": torch.tensor([1.0])}
    found = read_checkpoint(kept(run, store, 1, {**tensors, "d": torch.empty(0)})).tensors["method"]
    assert {name: (found[name].dtype, found[name].shape) for name in tensors} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()
    }


def test_a_tensor_that_is_gone_does_not_come_back(run: Path) -> None:
    store = TensorStore(run, "method")
    kept(run, store, 1, state_after(3))
    tensors = {name: tensor for name, tensor in state_after(3).items() if name != "group.1"}
    assert same(read_checkpoint(kept(run, store, 2, tensors)), tensors)
    assert same(read_checkpoint(kept(run, store, 3, state_after(3))), state_after(3))


def test_large_changing_tensors_are_apart_from_those_that_stay(run: Path) -> None:
    store, large = TensorStore(run, "method"), APART_FROM // 4
    kept(run, store, 1, {"shared": torch.zeros(large)})
    kept(run, store, 2, {"shared": torch.ones(large), "group.0": FROZEN["group.0"]})
    last = kept(run, store, 3, {"shared": torch.full((large,), 2.0), "group.0": FROZEN["group.0"]})
    sizes = [tensor_file(run, digest).stat().st_size for digest in referred(last)]
    assert sum(sizes) < 1.01 * APART_FROM + 1000


def referred(folder: Path) -> dict[str, list[str]]:
    return json.loads((folder / "state.json").read_text())["shared"]["method"]


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_damaged_file_costs_the_checkpoints_that_need_it(run: Path, damage: str) -> None:
    folders = stream(run)
    (new,) = referred(folders[2]).keys() - referred(folders[1]).keys()
    file = tensor_file(run, new)
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(content[:-1] + (b"" if damage == "cut" else b"\x7f"))
    for folder in folders[2:]:
        with pytest.raises(CheckpointError, match=rf"{file} is missing or differs from the checksum in its name; use"):
            read_checkpoint(folder)
    noted: list[Path] = []
    newest = Checkpoints(run, lambda folder, _: noted.append(folder)).newest()
    assert newest is not None
    assert newest.folder == folders[1]
    assert noted == [folders[3], folders[2]]
    if damage != "changed":  # as `littoral status` looks at large files
        assert Checkpoints(run, lambda *_: None, digest_up_to=0).newest() == newest


@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 90)], ids=["gone", "cut"])
@pytest.mark.parametrize("continued", [False, True], ids=["written here", "read here"])
def test_what_is_still_in_memory_is_written_again(run: Path, damage: object, continued: bool) -> None:
    store = TensorStore(run, "method")
    first = kept(run, store, 1, {"group.0": FROZEN["group.0"]})
    if continued:
        store = TensorStore(run, "method")
        store.remember(read_checkpoint(first))
    (digest,) = referred(first)
    assert callable(damage)
    damage(tensor_file(run, digest))
    second = kept(run, store, 2, state_after(2))
    assert same(read_checkpoint(second), state_after(2))
    assert same(read_checkpoint(first), {"group.0": FROZEN["group.0"]})  # the file is what it was


@pytest.mark.parametrize(
    "shared",
    [
        {"../../../etc/passwd": []},
        {"a" * 63 + "/": []},
        {"A" * 64: []},
        {"a" * 64: "group.0"},
        {"a" * 64: True},
        {"a" * 64: None},
        {"a" * 64: [1]},
        ["a" * 64],
    ],
)
def test_nothing_outside_the_folder_can_be_named(run: Path, shared: object) -> None:
    (folder,) = stream(run, tasks=1)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "shared": {"method": shared}}))
    with pytest.raises(CheckpointError, match=r"state.json names no tensors of its run as it should; use another"):
        read_checkpoint(folder)


def test_one_tensor_in_two_files_is_refused(run: Path) -> None:
    folders = stream(run, tasks=2)
    state = json.loads((folders[1] / "state.json").read_text())
    state["shared"]["method"] = {digest: [] for digest in state["shared"]["method"]}
    (folders[1] / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"\(shared is also in another one\)"):
        read_checkpoint(folders[1])


def test_a_moved_run_and_a_rejected_checkpoint_are_whole(run: Path, tmp_path: Path) -> None:
    folders = stream(run)
    (run / "rejected").mkdir()
    rejected = folders[3].rename(run / "rejected" / folders[3].name)
    remove_unreferenced(run)
    assert same(read_checkpoint(rejected), state_after(4))
    moved = run.rename(tmp_path / "elsewhere")
    assert same(read_checkpoint(moved / "checkpoints" / "03-t"), state_after(3))
    with pytest.raises(CheckpointError, match="missing"):  # alone, a checkpoint is not whole
        read_checkpoint(shutil.copytree(moved / "checkpoints" / "03-t", tmp_path / "alone" / "03-t"))


def test_what_no_checkpoint_refers_to_is_removed_and_nothing_else(run: Path) -> None:
    store = TensorStore(run, "method")
    begin = kept(run, store, 7, {"shared": torch.zeros(8)}, own="optimizer")
    folders = [kept(run, store, number, state_after(number)) for number in (1, 2, 3)]
    set_aside = folders[1].rename(folders[1].with_name(".02-t.older.host.1.partial"))
    (run / "tensors" / "of a user.txt").write_text("")
    before = written(run)
    remove_unreferenced(run)
    assert written(run) == before
    shutil.rmtree(begin)
    remove_unreferenced(run)
    gone = before.keys() - written(run).keys()
    assert len(gone) == 1
    assert read_checkpoint(set_aside, run).tensors["method"].keys() == state_after(2).keys()
    state = (folders[2] / "state.json").read_text()
    (folders[2] / "state.json").write_text(state[:-9])  # it may come back
    shutil.rmtree(set_aside)
    left = written(run)
    remove_unreferenced(run)
    assert written(run) == left
    (folders[2] / "state.json").write_text(state)
    assert same(read_checkpoint(folders[2]), state_after(3))


def test_a_checkpoint_of_its_own_files_stays_readable_and_goes_on(run: Path) -> None:
    old = run / "checkpoints" / "01-t"
    old.mkdir(parents=True)
    write_checkpoint(old, {"stream_state": StreamState(index=1).to_json()}, {"method": state_after(1)})
    assert json.loads((old / "state.json").read_text())["format"] == "littoral-checkpoint/1"
    store = TensorStore(run, "method")
    store.remember(read_checkpoint(old))
    second = kept(run, store, 2, state_after(2))
    remove_unreferenced(run)
    assert same(read_checkpoint(second), state_after(2))
    assert same(read_checkpoint(old), state_after(1))
    copy = run / "copy"
    copy.mkdir()
    found = read_checkpoint(second)  # what was shared, written whole
    write_checkpoint(copy, found.state, found.tensors)
    shutil.rmtree(run / "tensors")
    assert same(read_checkpoint(copy), state_after(2))


def two_tasks(run: Path, at: int) -> None:
    """Keep two checkpoints, and be killed before the call number `at` (0: never) that touches the run's folder."""
    calls = 0

    def counted(event: str, arguments: object) -> None:
        nonlocal calls
        if event in ("open", "os.rename", "os.chmod", "os.mkdir", "os.remove", "shutil.rmtree"):
            calls += str(run) in str(arguments)
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(counted)
    store = TensorStore(run, "method")
    for number in (1, 2):
        with whole_folder(run / "checkpoints" / f"{number:02d}-t", durable=True, replace=True) as folder:
            state = {"stream_state": StreamState(index=number).to_json()}
            write_checkpoint(folder, state, {}, {"method": store.put(state_after(number))})


def killed(run: Path, at: int) -> bool:
    run.mkdir(exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=two_tasks, args=(run, at))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return bool(process.exitcode)


def test_killed_at_any_moment_every_checkpoint_that_is_there_is_whole(tmp_path: Path) -> None:
    """And the next process ends with the files of one that nobody killed."""
    assert not killed(tmp_path / "whole", 0)
    expected, at, folders = written(tmp_path / "whole"), 0, set[int]()
    while killed(run := tmp_path / f"{(at := at + 1)}", at):
        for _ in range(2):
            found = [*(run / "checkpoints").glob("[!.]*")]
            folders.add(len(found))
            for folder in found:
                checked(folder)
            remove_unreferenced(run)
        assert not killed(run, 0)
        for number in (1, 2):
            assert same(read_checkpoint(run / "checkpoints" / f"{number:02d}-t"), state_after(number))
        assert {name: size for name, size in written(run).items() if name[0] != "."} == expected
    assert at > 30
    assert folders == {0, 1, 2}
