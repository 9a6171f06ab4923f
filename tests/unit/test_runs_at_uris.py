"""Runs that lie in a store: list, status and report say of them what they say of the same folder on this machine."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from failing_store import Store
from finished_runs import STREAM, finished
from reported_runs import three_runs

from components.core.checkpoint import read_checkpoint, write_checkpoint
from components.core.errors import ConfigError, StorageError
from components.core.files import write_json
from components.core.location import Location, place
from components.core.options import to_plain
from components.core.tensor_store import TensorStore
from components.evaluation.predictions import run_predictions
from components.runs.results import read_run
from components.runs.status import RunStatus, read_status, read_storage
from components.training.config import RunConfig
from components.training.stream_state import StreamState
from pipelines import list as list_command
from pipelines import report, status

BUCKET = "memory://unit-runs/runs"


@pytest.fixture
def bucket() -> Iterator[str]:
    yield BUCKET
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def uploaded(folder: Path, target: str = BUCKET) -> Location:
    """The folder's files, put into the store one by one."""
    found = place(target)
    assert isinstance(found, Location)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            (found / file.relative_to(folder).as_posix()).put(file)
    return found


def unfinished(storage: Path, *, cut: bool = False) -> Path:
    """A run in its second task, with a whole checkpoint of the first and one, whole or `cut`, inside the second."""
    path = finished(storage, RunConfig(run_id="second", stream=STREAM), [[40.0, None]])
    (path / "finished.json").unlink()
    write_json(path / "made_with.json", {"budget": {"updates": {"docvqa": 8, "iconqa": 6}}, "sessions": []})
    store = TensorStore(path, "method")
    for name, state in (
        ("checkpoints/01-docvqa", StreamState(index=0, update=8, learned=True)),
        ("checkpoint_2026-01-02_03-04-05.000000", StreamState(index=1, update=3)),
    ):
        (path / name).mkdir(parents=True)
        tensors = {"a": torch.full((5,), float(state.update))}
        shared = {"method": store.put(tensors)}
        facts = {"tasks": ["docvqa", "iconqa"], "stream_state": state.to_json()}
        write_checkpoint(path / name, facts, {}, shared)
    if cut:
        newest = max((path / "tensors").iterdir(), key=lambda file: file.stat().st_mtime_ns)
        newest.write_bytes(newest.read_bytes()[:-3])
    return path


def same(found: RunStatus, on_this_machine: RunStatus) -> None:
    """All but the place, the times of files, and the command, which needs the files here."""
    kept = {"path", "moved", "command", "note"}
    mine, theirs = to_plain(found), to_plain(on_this_machine)
    assert {name: value for name, value in mine.items() if name not in kept} == {
        name: value for name, value in theirs.items() if name not in kept
    }


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_status_of_an_unfinished_run(bucket: str, tmp_path: Path, cut: bool) -> None:
    path = unfinished(tmp_path, cut=cut)
    uploaded(tmp_path)
    found, here = read_status(place(f"{bucket}/second")), read_status(path)
    assert isinstance(found, RunStatus)
    assert isinstance(here, RunStatus)
    assert (found.state, found.position) != ("damaged", None)
    assert ("is not as long as" in found.problem or "differs from" in found.problem) == cut
    same(replace(found, problem=""), replace(here, problem=""))
    assert found.command.endswith(f"{bucket}/second/config.json --run-id second --storage {bucket}")
    assert found.note == ""
    assert found.moved is not None


def test_a_checkpoint_is_read_to_the_bit(bucket: str, tmp_path: Path) -> None:
    path = unfinished(tmp_path)
    uploaded(tmp_path)
    found = read_checkpoint(place(f"{bucket}/second/checkpoints/01-docvqa"))
    here = read_checkpoint(path / "checkpoints" / "01-docvqa")
    assert torch.equal(found.tensors["method"]["a"], here.tensors["method"]["a"])
    assert found.state == here.state


def test_list_and_status_print_the_same(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path, RunConfig(run_id="first", stream=STREAM), [[40.0, None], [30.0, 60.0]])
    unfinished(tmp_path)
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "config.json").write_text("{")
    uploaded(tmp_path)
    assert list_command.main(["--storage", str(tmp_path)]) == 0
    here = timeless(capsys.readouterr().out)
    assert list_command.main(["--storage", bucket]) == 0
    assert timeless(capsys.readouterr().out) == here
    assert len(here) == 4
    assert status.main(["first", "--storage", bucket]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"run {bucket}/first\n")
    assert "final_average 45.00" in printed
    assert status.main([f"{bucket}/second", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == f"{bucket}/second"
    assert status.main(["--storage", bucket]) == 0
    assert f"2 not finished, 1 finished in {bucket}" in capsys.readouterr().out


def timeless(printed: str) -> list[str]:
    """Lines without dates, in an order that does not depend on them."""
    return sorted(re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", line) for line in printed.splitlines())


def test_what_is_not_there_is_one_sentence(bucket: str) -> None:
    with pytest.raises(ConfigError, match=f"there are no runs, and no folder {bucket}"):
        read_storage(place(bucket))
    for given in ("first", "../first", "/first", f"{bucket}/first", ".."):
        with pytest.raises(ConfigError, match="there is no run"):
            status.main([given, "--storage", bucket])
    with pytest.raises(ConfigError, match="is not the folder of a run nor a record"):
        read_run(place(f"{bucket}/first"))


def test_a_run_at_a_uri_that_is_not_there_is_looked_for_in_its_own_storage(bucket: str, tmp_path: Path) -> None:
    """Not in the folder `runs` of this machine, which nobody has named."""
    uploaded(unfinished(tmp_path), f"{bucket}/second")
    with pytest.raises(ConfigError) as told:
        status.main([f"{bucket}/secnd"])
    assert f"there is no run 'secnd' in {bucket}; `" in str(told.value)
    assert str(told.value).endswith(f"list --storage {bucket}` shows those that there are. Did you mean second?")


def test_a_store_that_does_not_answer_is_told_and_is_no_damage_of_files() -> None:
    store = Store(whole_puts=True)
    write_json(store.place("b/first/config.json"), {})
    with store.failing(1, after=False, gone=True):
        with pytest.raises(ConfigError, match=r"test://b cannot be listed \(lost before list"):
            read_storage(store.place("b"))
        with pytest.raises(StorageError, match="test://b/first cannot be read"):
            read_run(store.place("b/first"))


def test_a_pattern_names_the_runs_of_a_store_as_a_shell_has_it(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a query follows it."""
    runs = sorted(str(run.path) for run in three_runs(tmp_path) if run.path.is_dir())
    for path in runs:
        uploaded(Path(path), f"{bucket}/{Path(path).name}")
    write_json(place(f"{bucket}/.cache/kept.json"), {})
    assert report.main([*runs, "--markdown"]) == 0
    here = capsys.readouterr().out
    assert report.main([f"{bucket}/*", "--markdown"]) == 0
    assert capsys.readouterr().out == here
    with pytest.raises(ConfigError, match=rf"nothing in {bucket} is called no-\*; give a run"):
        report.main([f"{bucket}/no-*"])


def test_a_report_and_its_records_are_the_same(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run.path for run in three_runs(tmp_path) if run.path.is_dir()]
    for path in runs:
        assert isinstance(path, Path)
        uploaded(path, f"{bucket}/{path.name}")
    names = [path.name for path in runs]
    assert report.main([*map(str, runs), "--markdown"]) == 0
    here = capsys.readouterr().out
    assert report.main([*(f"{bucket}/{name}" for name in names), "--markdown"]) == 0
    assert capsys.readouterr().out == here
    assert [*run_predictions(place(f"{bucket}/{names[0]}"))] == [*run_predictions(runs[0])]
    assert report.main([*map(str, runs), "--record", str(tmp_path / "records")]) == 0
    assert report.main([*(f"{bucket}/{name}" for name in names), "--record", f"{bucket}-records"]) == 0
    for name in names:
        record = place(f"{bucket}-records/{name}.json")
        assert record.read_bytes() == (tmp_path / "records" / f"{name}.json").read_bytes()
    capsys.readouterr()
    assert report.main([*(f"{bucket}-records/{name}.json" for name in names), "--markdown"]) == 0
    from_records = capsys.readouterr().out
    shutil.rmtree(tmp_path / "records")
    assert from_records.splitlines()[0] == here.splitlines()[0]
