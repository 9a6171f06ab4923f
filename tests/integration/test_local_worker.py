"""A run's only worker without Ray Train's controller learns what it learns with it, also one run after another."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from checkpoint_bits import learned_bits

from components.core.errors import StreamStopped
from components.core.events import Event, StepDone
from components.core.ray_session import ray_session
from components.methods import METHODS
from components.training.config import RunConfig
from components.training.driver import run_stream
from components.training.plan import plan_stream
from components.training.stopping import request_stop
from pipelines.presets import pocket

Session = Callable[[], AbstractContextManager[None]]


@contextmanager
def without_controller() -> Iterator[None]:
    with ray_session(None, num_workers=1):
        yield


@contextmanager
def with_controller() -> Iterator[None]:
    """In a Ray that no command of ours has started."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def config_of(storage: Path, method: str) -> RunConfig:
    preset = pocket()
    return replace(
        preset,
        run_id="r",
        storage=storage,
        stream=replace(preset.stream, order=("iconqa", "docvqa"), test_limit=6),
        method=METHODS[method].tiny(),
        training=replace(preset.training, updates_per_task=20, checkpoint_every_updates=2),
    )


def run(config: RunConfig, *, stop_at: tuple[int, int] | None = None) -> set[str]:
    """Learn the stream, or until it is asked to stop at a task's update; titles of Ray's processes that were seen."""
    plan, seen = plan_stream(config), set[str]()

    def handle(event: Event) -> None:
        if not isinstance(event, StepDone):
            return
        seen.update(titles().values())
        if (event.index, event.update) == stop_at:
            request_stop(plan.run_dir)

    run_stream(plan, handle)
    return {title.split(".")[0] for title in seen if title.startswith("ray::")}


def bits(run_dir: Path) -> dict[str, bytes | dict[str, str]]:
    paths = [*run_dir.glob("predictions/**/*.parquet"), *run_dir.glob("*_matrix.json")]
    return {**{str(path.relative_to(run_dir)): path.read_bytes() for path in paths}, **learned_bits(run_dir)}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one session: `alone`, which was its first, another method's, and the first one's again: `after`."""
    folder = tmp_path_factory.mktemp("runs")
    with without_controller():
        seen = run(config_of(folder / "alone", "continual_llava"))
        (worker,) = workers()
        run(config_of(folder / "between", "moelora"))
        run(config_of(folder / "after", "continual_llava"))
        assert workers() == [worker]
    assert "ray::LocalWorker" in seen
    assert not any("Train" in title or "Synchron" in title or "Cleaner" in title for title in seen)
    return folder


def test_one_run_after_another_learns_what_it_learns_alone(storage: Path) -> None:
    assert bits(storage / "after" / "r") == bits(storage / "alone" / "r")


def workers() -> list[int]:
    return [process for process, title in titles().items() if title.startswith("ray::LocalWorker")]


def titles() -> dict[int, str]:
    """Of the processes below this one."""
    found = dict[int, str]()
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found[each.pid] = " ".join(each.cmdline())
    return found


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(without_controller, id="begun without"),
        pytest.param(with_controller, id="begun with", marks=pytest.mark.long),
    ],
)
def test_a_run_goes_on_with_and_without_a_controller(first: Session, storage: Path, tmp_path: Path) -> None:
    then = with_controller if first is without_controller else without_controller
    config = config_of(tmp_path, "continual_llava")
    with first(), pytest.raises(StreamStopped):
        run(config, stop_at=(1, 3))
    with then():
        seen = run(config)
    assert ("ray::LocalWorker" in seen) == (then is without_controller)
    assert bits(tmp_path / "r") == bits(storage / "alone" / "r")
    assert len([*(tmp_path / "r").glob("checkpoint_*")]) == 3  # two to continue from, and the list


@pytest.mark.long
def test_a_run_that_ends_at_once_asks_ray_nothing_afterwards(tmp_path: Path) -> None:
    """What waited for the worker learns of its death then. Most of Ray's functions would start or join another Ray."""

    def two_signals(event: Event) -> None:
        if isinstance(event, StepDone) and event.update == 1:
            for _ in range(2):  # the first one asks the run to stop, the second one ends it
                signal.raise_signal(signal.SIGINT)
                time.sleep(0.5)

    plan, before = plan_stream(config_of(tmp_path, "sequential_lora")), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), without_controller():
        run_stream(plan, two_signals)
    for number, handler in ((signal.SIGINT, before), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)  # a third one would have ended this process
    time.sleep(5)
    assert not ray.is_initialized()
