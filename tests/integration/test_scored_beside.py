"""Rows that are scored beside training are, bit for bit, those of a run that is scored in turn.

    python -m pytest tests/integration/test_scored_beside.py

The zero-shot replies of one run are not to answer for another, so runs that are compared have storages of their own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from checkpoint_bits import learned_bits

from components.core.errors import ConfigError, LostError, StreamStopped
from components.core.events import EvaluationProgress, Event, Note, RowScored, StepDone, SuitesScored
from components.core.ray_session import ray_session
from components.evaluation.general import GENERAL_FILE
from components.methods import METHODS
from components.training.config import ClusterConfig, RunConfig
from components.training.driver import run_stream
from components.training.plan import plan_stream
from components.training.stopping import LOOK_EVERY_S, request_stop
from components.training.stream_state import Checkpoints
from pipelines.presets import pocket

pytestmark = pytest.mark.long  # each run here takes a minute

ROOT = Path(__file__).resolve().parents[2]
ORDER = ("iconqa", "docvqa")
SUITE = "mini-constraints"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("LITTORAL_CACHE", raising=False)
    with ray_session(None, num_workers=3):  # 5 logical CPUs: two workers, two scorers, one for Ray Data
        yield


def config_of(storage: Path, *, beside: int, workers: int = 1, updates: int = 6, failures: int = 3) -> RunConfig:
    preset = pocket()
    return replace(
        preset,
        run_id="r",
        storage=storage,
        stream=replace(preset.stream, size="nano", order=ORDER, test_limit=6),
        method=METHODS["individual"].tiny(),
        training=replace(preset.training, updates_per_task=updates, checkpoint_every_updates=2),
        evaluation=replace(preset.evaluation, suites=(SUITE,), suites_after_every_task=True, beside=beside),
        cluster=ClusterConfig(num_workers=workers, threads_per_worker=1, max_failures=failures),
    )


def run(config: RunConfig, when: Callable[[Event], object] = lambda event: None) -> list[Event]:
    """The events of a run; `when` hears of each as it comes."""
    events: list[Event] = []

    def handle(event: Event) -> None:
        events.append(event)
        when(event)

    run_stream(plan_stream(config), handle)
    return events


def bits(run_dir: Path) -> dict[str, bytes | dict[str, str]]:
    """What a run ends with: matrices, every prediction file, decisions, digests, and what was learned."""
    patterns = ("*_matrix.json", "predictions/**/*.parquet", "manifest.json", GENERAL_FILE, "decisions.json")
    paths = [path for pattern in patterns for path in run_dir.glob(pattern)]
    return {**{str(path.relative_to(run_dir)): path.read_bytes() for path in paths}, **learned_bits(run_dir)}


def processes(name: str, of: int | None = None) -> list[psutil.Process]:
    """Those below a process, or below this one, whose title begins with `name`."""
    found = psutil.Process(of).children(recursive=True)
    return [each for each in found if title(each).startswith(name)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.usefixtures("cluster")
def test_rows_are_those_of_a_run_that_is_scored_in_turn(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 workers and 4 processes .* need 7 CPUs .*, the cluster has 5; lower"):
        run(config_of(tmp_path / "refused", beside=4, workers=2))
    run(config_of(tmp_path / "turn", beside=0, workers=2))
    events = run(config_of(tmp_path / "beside", beside=2, workers=2))
    wanted, found = (bits(tmp_path / name / "r") for name in ("turn", "beside"))
    assert len([name for name in wanted if name.endswith(".parquet")]) == 3 + 3  # rows and suites
    assert found == wanted
    assert [event.tasks_learned for event in events if isinstance(event, RowScored)] == [0, 1, 2]
    assert [event.tasks_learned for event in events if isinstance(event, SuitesScored)] == [0, 1, 2]
    # The last task was learned without its row, and the run ended with all of them.
    last, before = Checkpoints(tmp_path / "beside" / "r", lambda *_: None).snapshots()[:2]
    assert (last.at.index, last.at.awaited, len(last.at.rows)) == (2, 0, 3)
    assert (before.at.index, before.at.awaited, len(before.at.rows)) == (2, 1, 2)


@pytest.mark.usefixtures("cluster")
def test_a_run_that_was_stopped_takes_up_its_rows_beside_or_in_turn(tmp_path: Path) -> None:
    run(config_of(tmp_path / "turn", beside=0, updates=60))
    for goes_on in (1, 0):
        storage = tmp_path / f"then-{goes_on}"

        def stop(event: Event, run_dir: Path = storage / "r") -> None:
            if isinstance(event, StepDone) and (event.index, event.update) == (1, 2):
                request_stop(run_dir)
                (worker,) = processes("ray::LocalWorker")
                worker.suspend()
                time.sleep(1.2 * LOOK_EVERY_S)  # so its next look is due
                worker.resume()

        with pytest.raises(StreamStopped):
            run(config_of(storage, beside=1, updates=60), stop)
        newest = Checkpoints(storage / "r", lambda *_: None).newest()
        assert newest is not None
        assert (newest.at.index, newest.at.awaited) == (1, 1)
        run(config_of(storage, beside=goes_on, updates=60))
        assert bits(storage / "r") == bits(tmp_path / "turn" / "r")


@pytest.mark.usefixtures("cluster")
def test_a_scorer_that_is_killed_is_replaced_within_bounds(tmp_path: Path) -> None:
    run(config_of(tmp_path / "turn", beside=0))
    killed: list[int] = []

    def kill(event: Event) -> None:
        if isinstance(event, EvaluationProgress) and not killed:
            (scorer,) = processes("ray::Scorer")
            killed.append(scorer.pid)
            scorer.kill()

    events = run(config_of(tmp_path / "beside", beside=1), kill)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "a process that scores rows was lost and is replaced; whole cells are kept" in notes
    assert bits(tmp_path / "beside" / "r") == bits(tmp_path / "turn" / "r")

    killed.clear()
    with pytest.raises(LostError, match=r"scores rows beside training .* more often than cluster\.max-failures allows"):
        run(config_of(tmp_path / "bounded", beside=1, failures=0), kill)
    run(config_of(tmp_path / "bounded", beside=1))
    assert bits(tmp_path / "bounded" / "r") == bits(tmp_path / "turn" / "r")


def test_killed_worker_and_driver_and_continued(tmp_path: Path) -> None:
    """Through the command: the worker is killed in task 1, every process in task 2; then the same command goes on."""

    def command(storage: str, *options: str) -> list[str]:
        given = [sys.executable, "pipelines/coast.py", "pocket", "--method", "lcia", "--run-id", "r"]
        given += ["--storage", str(tmp_path / storage), "--stream.order", "chartqa", "docvqa"]
        given += ["--training.epochs", "12", "--training.checkpoint-every-updates", "4"]
        return [*given, *options]

    def finish(given: list[str]) -> str:
        done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    finish(command("turn"))
    beside = command("beside", "--evaluation.beside", "1")
    process = subprocess.Popen(beside, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    read_until(process, "Task 1/2")
    (worker,) = processes("ray::LocalWorker", process.pid)
    worker.kill()
    read_until(process, "Task 2/2")
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        each.kill()
    process.communicate(timeout=60)
    assert "continuing at task" in finish(beside)
    assert bits(tmp_path / "beside" / "r") == bits(tmp_path / "turn" / "r")


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"no line with {text!r}: {''.join(lines)}")
