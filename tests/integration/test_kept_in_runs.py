"""Real runs that keep replies and one that does not end with the same; zero-shot replies go from run to run.

    python -m pytest tests/integration/test_kept_in_runs.py

One Ray session serves all runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from components.core.errors import StreamStopped
from components.core.events import Event, Note, RowScored
from components.core.ray_session import ray_session
from components.evaluation.predictions import Prediction, run_predictions
from components.methods import METHODS
from components.training.config import ClusterConfig, RunConfig
from components.training.driver import run_stream
from components.training.plan import plan_stream
from components.training.stopping import LOOK_EVERY_S, request_stop
from pipelines.presets import pocket

ORDER, ROWS = ("iconqa", "docvqa", "chartqa"), 4


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("LITTORAL_CACHE", raising=False)  # nothing that runs share is there when the first begins
        with ray_session(None, num_workers=1):
            yield folder


def config_of(
    run_id: str, storage: Path, method: str = "individual", *, reuse: bool = True, seed: int = 0
) -> RunConfig:
    preset = pocket()
    return replace(
        preset,
        run_id=run_id,
        storage=storage,
        seed=seed,
        stream=replace(preset.stream, size="nano", order=ORDER, test_limit=ROWS),
        method=METHODS[method].tiny(),
        training=replace(preset.training, updates_per_task=2),
        evaluation=replace(preset.evaluation, reuse=reuse),
        cluster=ClusterConfig(num_workers=1, threads_per_worker=1),
    )


def run(config: RunConfig, *, stop_after: str | None = None) -> list[Event]:
    """The events of a run, asked to stop as soon as the row after task `stop_after` is scored."""
    plan, events = plan_stream(config), list[Event]()

    def handle(event: Event) -> None:
        events.append(event)
        if isinstance(event, RowScored) and event.after == stop_after:
            request_stop(plan.run_dir)
            suspend_workers(1.2 * LOOK_EVERY_S)  # so its next look is due, whatever the last one was

    if stop_after is None:
        run_stream(plan, handle)
    else:
        with pytest.raises(StreamStopped):
            run_stream(plan, handle)
    return events


def suspend_workers(seconds: float) -> None:
    children = psutil.Process().children(recursive=True)
    workers = [each for each in children if "LocalWorker" in "".join(each.cmdline())]
    assert workers
    for worker in workers:
        worker.suspend()
    time.sleep(seconds)
    for worker in workers:
        worker.resume()


def kept(events: list[Event]) -> dict[str, tuple[int, int]]:
    return {event.after: (event.kept_replies, event.replies) for event in events if isinstance(event, RowScored)}


def said(storage: Path, run_id: str) -> list[Prediction]:
    """Every prediction without what only reuse knows."""
    rows = run_predictions(storage / run_id)
    return [replace(row, reply_key=None, oracle_reply_key=None, answered_in=None) for row in rows]


@pytest.mark.long
def test_replies_are_kept_within_a_run_and_zero_shot_ones_between_runs(storage: Path) -> None:
    expected = {
        "zero-shot": (0, 3 * ROWS),
        "iconqa": (0, ROWS),
        "docvqa": (ROWS, 2 * ROWS),
        "chartqa": (2 * ROWS, 3 * ROWS),
    }
    assert kept(run(config_of("whole", storage))) == expected
    assert kept(run(config_of("plain", storage, reuse=False))) == {
        row: (0, rows) for row, (_, rows) in expected.items()
    }
    assert said(storage, "whole") == said(storage, "plain")
    where = {(row.after, row.task): row.answered_in for row in run_predictions(storage / "whole")}
    assert [where["chartqa", task] for task in ORDER] == ["iconqa", "docvqa", None]

    # Stopped with two tasks left, and continued: replies come from the first start.
    first = kept(run(config_of("stopped", storage), stop_after="iconqa"))
    second = kept(run(config_of("stopped", storage)))
    assert {**first, **second} == {**expected, "zero-shot": (3 * ROWS, 3 * ROWS)}
    assert [*run_predictions(storage / "stopped")] == [*run_predictions(storage / "whole")]

    other = run(config_of("other", storage, "sequential_lora", seed=1))
    assert kept(other)["zero-shot"] == (3 * ROWS, 3 * ROWS)
    assert kept(other)["chartqa"] == (0, 3 * ROWS)
    assert any(isinstance(event, Note) and "come from whole" in event.text for event in other)


@pytest.mark.long
def test_chosen_replies_are_kept_as_generated_ones_are(storage: Path) -> None:
    def chosen(run_id: str, *, reuse: bool) -> RunConfig:
        config = config_of(run_id, storage, reuse=reuse)
        stream = replace(config.stream, name="mini-coin", order=("scienceqa", "gqa"))
        return replace(config, stream=stream, evaluation=replace(config.evaluation, replies="acc"))

    assert kept(run(chosen("letters", reuse=True)))["gqa"] == (ROWS, 2 * ROWS)
    assert kept(run(chosen("letters-again", reuse=False)))["gqa"] == (0, 2 * ROWS)
    assert said(storage, "letters") == said(storage, "letters-again")
    for row in run_predictions(storage / "letters"):
        if row.task == "scienceqa":
            assert (row.chosen_by, row.options) == ("acc", ["A", "B", "C", "D"])
        assert (row.options is None) == (row.chosen_by is None) == (row.log_likelihoods is None)
        if row.options is not None and row.log_likelihoods is not None:
            assert row.prediction == row.options[row.log_likelihoods.index(max(row.log_likelihoods))]
    assert json.loads((storage / "letters" / "score_matrix.json").read_text())["replies"] == "acc"
