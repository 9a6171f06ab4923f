"""What a run writes beside its checkpoints, into a store: what a folder of this machine has after the same calls."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from failing_store import Store

from components.core.errors import ConfigError, DataError
from components.core.events import Event, PhaseBegan
from components.core.location import Location, Place, name_inside
from components.core.lock import holder_of, sole_user
from components.data.rows import Shard, Split
from components.data.tasks import Task
from components.evaluation.decisions import Decisions
from components.evaluation.general import GeneralScores
from components.evaluation.manifest import digests, is_as_noted, note_digests
from components.evaluation.matrix import ScoreMatrix
from components.evaluation.predictions import (
    Prediction,
    predictions_file,
    read_predictions,
    run_predictions,
    write_predictions,
)
from components.runs.activity import Activity, read_activity
from components.runs.costs import Costs
from components.runs.provenance import add_session, made_with
from components.runs.records import set_damaged_aside
from components.training.kept_cells import KeptCells
from components.training.stopping import STOP_FILE, StopWatch, clear_stop, ended_early, request_stop, stop_requested


@pytest.fixture(params=["folder", "puts", "moves"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A run's folder; the first kind is what the others are held against."""
    return tmp_path if request.param == "folder" else Store(whole_puts=request.param == "puts").place("b/runs/first")


def replies(task: str) -> list[Prediction]:
    return [
        Prediction(after="a", task=task, sample_id=str(each), prediction="tea", answers=["tea"], score=each / 3)
        for each in range(4)
    ]


def task(name: str) -> Task:
    shard = Shard(file="0.parquet", rows=4, bytes=9, sha256="ab")
    split = Split(path=Path(name), task=name, split="test", shards=(shard,))
    return Task(name=name, train=split, test=split, max_new_tokens=8)


def test_predictions_and_their_digests(run: Place) -> None:
    first, second = predictions_file(run, 1, "a"), predictions_file(run, 2, "b")
    write_predictions(first, replies("a"), {"a": "made"})
    write_predictions(second, replies("b"))
    note_digests(run, [first, second])
    assert [*run_predictions(run)] == [*replies("a"), *replies("b")]
    assert [*digests(run)] == ["predictions/01-a.parquet", "predictions/02-b.parquet"]
    assert is_as_noted(run, first)
    write_predictions(first, replies("a")[:-1])
    assert not is_as_noted(run, first)
    with pytest.raises(DataError, match=r"03-c\.parquet cannot be read as predictions"):
        next(read_predictions(predictions_file(run, 3, "c")))


def test_cells_are_kept_until_their_row_is_there(run: Place) -> None:
    cells = KeptCells(run, 1, "a", state="s")
    cells.put(task("a"), None, replies("a"))
    assert KeptCells(run, 1, "a", state="s").take(task("a"), 4, None) == replies("a")
    assert KeptCells(run, 1, "a", state="t").take(task("a"), 4, None) is None
    assert [*run_predictions(run)] == []
    cells.join(replies("a"))
    assert [*run_predictions(run)] == replies("a")
    assert not (run / "predictions" / ".01-a").exists()
    assert KeptCells(run, 1, "a", state="s").take(task("a"), 4, None) == replies("a")


def test_records_are_read_back(run: Place) -> None:
    matrix = ScoreMatrix(["a", "b"], [[40.0, None], [30.0, 60.0]], zero_shot=False)
    matrix.write(run / "score_matrix.json", stream="s", method="m", backbone="b", seed=0)
    assert ScoreMatrix.read(run / "score_matrix.json").rows == matrix.rows
    Costs(trainable_parameters=3).write(run)
    assert Costs.read(run) == Costs(trainable_parameters=3)
    add_session(run, budget={"updates": {"a": 3}}, cores=1, gpu=False, execution={"workers": "1"})
    add_session(run, budget={"updates": {"a": 3}}, cores=2, gpu=False, execution={"workers": "2"})
    assert [each["execution"]["workers"] for each in made_with(run)["sessions"]] == ["1", "2"]
    assert not GeneralScores.read(run / "general.json").figures
    assert not Decisions.read(run / "decisions.json")


def test_a_damaged_record_is_set_aside(run: Place) -> None:
    Costs(trainable_parameters=3).write(run)
    damaged = (run / "costs.json").read_bytes()[:-9]
    if isinstance(run, Location):
        (run / "costs.json").put(damaged)
    else:
        (run / "costs.json").write_bytes(damaged)
    told: list[Event] = []
    with pytest.raises(ConfigError):
        Costs.read(run)
    set_damaged_aside(run, lambda _: None, told.append)
    assert Costs.read(run) == Costs()
    assert (run / "costs.json.damaged").read_bytes() == damaged
    assert len(told) == 1
    assert holder_of(run) is None


def test_a_run_is_asked_to_stop_and_the_first_word_holds(run: Place) -> None:
    if isinstance(run, Path):
        run.mkdir(exist_ok=True)
    watch = StopWatch(run)
    assert (stop_requested(run), ended_early(run), watch.requested()) == (False, False, False)
    request_stop(run, for_now=True)
    request_stop(run)
    assert (stop_requested(run), ended_early(run)) == (True, False)
    clear_stop(run)
    clear_stop(run)
    assert not stop_requested(run)
    request_stop(run)
    assert ended_early(run)
    later, deadline = StopWatch(run), time.monotonic() + 60
    while not later.requested():  # a thread looks in a store
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert name_inside(run / STOP_FILE, run) == "stop"


def test_what_a_run_does_is_said_while_it_does_it(run: Place) -> None:
    with sole_user(run, "run first"), Activity(run, ["a", "b"]) as activity:
        holder = holder_of(run)
        activity.handle(PhaseBegan(phase="starting Ray"))
        end = time.monotonic() + 10
        while not (said := read_activity(run, holder)[0]) and time.monotonic() < end:
            time.sleep(0.02)
        assert said == "starting Ray"
        assert holder is not None
        assert holder.process == os.getpid()
        assert json.loads((run / "activity.json").read_bytes())["by"] == holder.name
    assert not (run / "activity.json").exists()
