"""Trials of a sweep: each is a run of its own, in a folder named by its values, and continues like any other run.

A sweep therefore needs no state of Ray Tune's: started again, it finds what its trials left. Finished ones report what
they found, unfinished ones go on inside their task, and nothing is unpickled from disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from components.core.errors import ConfigError, StreamStopped
from components.core.events import Event, RowScored
from components.core.files import make_folder, write_json
from components.core.location import Place
from components.core.options import CountOrZero, NonNegative, from_plain
from components.core.reading import read_object, understood
from components.core.run_files import FINISHED_FILE
from components.evaluation.matrix import MATRIX_FILE, ScoreMatrix
from components.runs.costs import Costs, RowCost
from components.runs.execute import recorded_as, run_and_record
from components.runs.record import complete_record
from components.training.config import RunConfig
from components.training.plan import plan_stream
from components.training.run_folder import finished_result, learned_in
from components.training.stopping import ended_early, stop_requested
from components.tuning.space import Values, configured, plain, trial_name

TRIAL_FILE = "trial.json"
_BEGIN_AGAIN = "remove the trial's folder to begin it again"
LEARNED = "tasks_learned"

Figures = dict[str, float]
State = Literal["finished", "stopped", "failed", "unfinished"]


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """What all trials of a sweep share: plain data, to be pickled."""

    base: RunConfig  # its storage is the sweep's folder
    parent: str | None  # MLflow run of the sweep
    shared_dir: Place | None = None  # where trials put and find learned tasks; None: nothing is shared
    keep_stopped: bool = False  # a trial that was ended early stays so; otherwise it goes on

    def config(self, values: Values) -> RunConfig:
        """The run of these values; its id is their name."""
        return replace(configured(self.base, values), run_id=trial_name(values))

    @property
    def sweep_folder(self) -> Place:
        return self.base.place

    def folder(self, values: Values) -> Place:
        """Where that run is kept."""
        return self.sweep_folder / trial_name(values)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial as its folder records it."""

    name: str
    values: Values
    state: State
    learned: int = 0  # tasks learned and scored
    figures: Figures  # after the last of them
    updates: int = 0  # optimizer updates that it made itself
    reason: str = ""  # of a failed one
    mlflow_id: str | None = None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def run_trial(values: Values, plan: TrialPlan, report: Callable[[Figures], None]) -> None:
    """Run one trial, telling `report` its figures after every learned task, the last time when all is written.

    A trial that was begun before reports what it has first, so that a scheduler sees every trial from its first task
    on. One that is asked to end early (training/stopping.py) returns without its last figures, and one that comes when
    the whole sweep is stopping does not begin.
    """
    if stop_requested(plan.sweep_folder):
        return
    stream = replace(plan_stream(plan.config(values)), shared_dir=plan.shared_dir)
    make_folder(stream.run_dir)
    last = stream.num_tasks
    finished = finished_result(stream) is not None
    before = last if finished else learned_in(stream.run_dir)
    for learned in range(1, before + 1):
        if learned < last or finished:
            report(figures_after(stream.run_dir, learned))
    if finished:
        complete_record(stream, lambda event: None)  # what MLflow still lacks stays in the trial's folder
    if finished or (plan.keep_stopped and ended_early(stream.run_dir)):
        return

    def follow(event: Event) -> None:
        if isinstance(event, RowScored) and event.tasks_learned:
            _mark_begun(stream.run_dir, values)
            # The last report comes below, when the run is whole.
            if before < event.tasks_learned < last:
                report(figures_after(stream.run_dir, event.tasks_learned))

    try:
        run_and_record(stream, follow, parent=plan.parent)
    except StreamStopped:
        _mark_begun(stream.run_dir, values)
        return
    report(figures_after(stream.run_dir, last))


def _mark_begun(run_dir: Place, values: Values) -> None:
    """Leave the trial's values in its folder, for `begun_in`. A file of an earlier version also has costs: it stays."""
    path = run_dir / TRIAL_FILE
    if not path.is_file():
        write_json(path, {"values": values})


def _costs(run_dir: Place) -> Costs:
    """The run's costs.json, with what earlier versions kept in trial.json: seconds by task, and updates."""
    path, costs = run_dir / TRIAL_FILE, Costs.read(run_dir)
    found = read_object(path, ConfigError, _BEGIN_AGAIN) if path.is_file() else {}
    try:
        old = from_plain(_Earlier, found, TRIAL_FILE)
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged ({error}); {_BEGIN_AGAIN}.") from error
    counted = {row.tasks_learned for row in costs.rows}
    earlier = enumerate(old.train_s, start=1)
    rows = [RowCost(after="", tasks_learned=at, train_s=seconds) for at, seconds in earlier if at not in counted]
    trainable = max(costs.trainable_parameters, old.trainable_parameters)
    updates = costs.updates + old.updates  # made by this trial: a reused task adds none
    return Costs(trainable_parameters=trainable, updates=updates, rows=[*rows, *costs.rows])


def begun_in(folder: Place) -> tuple[Values, ...]:
    """The values of the trials that a sweep's folder holds, in the order of their names."""
    files = sorted(folder.glob(f"*/{TRIAL_FILE}"), key=str)
    return tuple(map(_begun_with, files))


def _begun_with(file: Place) -> Values:
    content = read_object(file, ConfigError, _BEGIN_AGAIN)
    with understood(file, ConfigError, _BEGIN_AGAIN):
        return {name: plain(value) for name, value in content["values"].items()}


@dataclass(frozen=True, kw_only=True)
class _Earlier:
    """What earlier versions kept in trial.json."""

    train_s: list[NonNegative] = field(default_factory=list)
    trainable_parameters: CountOrZero = 0
    updates: CountOrZero = 0


def figures_after(run_dir: Place, learned: int) -> Figures:
    """The matrix's figures after `learned` tasks and the costs until then."""
    matrix = ScoreMatrix.read(run_dir / MATRIX_FILE).at(learned)
    costs = _costs(run_dir)
    return {
        LEARNED: learned,
        **matrix.summary(),
        "trainable_parameters": costs.trainable_parameters,
        "train_s": sum(row.train_s for row in costs.rows if row.tasks_learned <= learned),
    }


def trial_of(plan: TrialPlan, values: Values, *, error: str = "") -> Trial:
    """The trial of these values as its folder records it; `error`: why it failed."""
    folder = plan.folder(values)
    learned = learned_in(folder)
    state: State = "failed" if error else "stopped" if ended_early(folder) else "unfinished"
    return Trial(
        name=folder.name,
        values=values,
        state="finished" if (folder / FINISHED_FILE).is_file() else state,
        learned=learned,
        figures=figures_after(folder, learned) if learned else {},
        updates=_costs(folder).updates,
        reason=error,
        mlflow_id=recorded_as(folder),
    )
