"""A sweep from options to files: planned and checked, its folder claimed, its trials followed, the best kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from components.console.tables import markdown
from components.core.errors import ConfigError, StreamStopped
from components.core.files import make_folder, whole_file, write_json, write_text
from components.core.location import Place, uri_or_path
from components.core.machine import usable_cpus
from components.core.naming import id_of, require_id
from components.core.reading import read_object, understood
from components.core.run_files import SHARED_FOLDER, SWEEP_FILE
from components.evaluation.figure_names import WITH_BOUNDARIES, WITHOUT_BOUNDARIES
from components.models.source import model_source
from components.tracking.config import TrackingConfig, tracking_uri
from components.tracking.sweep import SweepTracker, open_sweep_tracker
from components.training.config import Chosen, ClusterConfig, Json, RunConfig, flatten
from components.training.plan import plan_stream, require_lasting_storage
from components.training.stopping import clear_stop, stopping_on_signals
from components.tuning.objective import Objective, parse_objective
from components.tuning.results import ORDER, SEED, Setting, best_of, draw_pareto, settings_of, table, tied_with
from components.tuning.search import OnProgress, Search, Stopping, run_trials, streams_of_this_machine
from components.tuning.space import GRID, WHERE, Axis, configured, orders_axis, parse_axis, points, require_space
from components.tuning.trials import Trial, TrialPlan, begun_in

DEFAULT_SPACE = ("method.slots_per_task=grid(4, 8)", "method.rank=grid(4, 8)")
VALIDATION_SHARE = 0.2  # of the training rows, where the run names none
BEST_FILE, TABLE_FILE, PARETO_FILE = "best.json", "table.md", "pareto.png"


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What a sweep varies, how often, and by what it judges."""

    space: tuple[str, ...] = DEFAULT_SPACE
    """What to vary, FIELD=VALUES each; grid(...) or a list takes every value, choice, uniform, loguniform, randint, ...
    are drawn from."""
    metric: tuple[str, ...] = ("final_average",)
    """What to raise or lower (NAME or NAME:max / NAME:min); several give a Pareto front, the first one decides."""
    search: Literal["listed", "optuna"] = "listed"
    """How settings are chosen; listed: every grid point, with --num-samples draws of what is drawn; optuna: by TPE
    (extra `optuna`)."""
    num_samples: int = 10
    """Draws for each grid point; for optuna: trials in all."""
    choose_on_test: bool = False
    """Score the trials on test rows instead of validation rows: for a comparison in which nothing is chosen, or for a
    choice that says so in best.json, in sweep.json and on the screen."""
    seeds: int = 1
    """Seeds for every setting: seed, seed + 1, ...; figures are then means over them."""
    stopping: Stopping = "none"
    """Whether trials end early; asha ends those that are behind at equal numbers of learned tasks, none is what a
    published number needs."""
    grace: int | None = None
    """Learned tasks before which no trial is ended; default: half of the stream."""
    share: bool = True
    """Trials that agree on all that the first tasks' learning depends on learn those tasks once."""
    at_once: int | None = None
    """Trials that run together; default: what the machine or cluster holds."""
    orders: tuple[str, ...] = ()
    """Orders of the tasks for every setting: a number (the stream's own and others, shuffled), or names among own,
    reversed and alphabetical; figures are then means over them too."""
    sweep_id: str | None = None
    """Folder of the sweep below --storage; the same id continues it."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep that has been checked."""

    id: str
    folder: Place
    base: RunConfig  # storage and tracking are those of the trials
    axes: tuple[Axis, ...]
    search: Search
    share: bool
    repeated: tuple[str, ...]  # fields whose values repeat a setting
    began_with: Chosen | None = None  # how an earlier sweep chose the options that all trials share
    given: Mapping[str, Json] = field(default_factory=dict[str, Json])  # its command: see runs/continuing.py


def plan_sweep(run: RunConfig, options: SweepOptions, *, began_with: Chosen | None = None) -> Sweep:
    """Resolve and check all that can be checked before a process starts; raises `ConfigError`.

    `began_with`: how an earlier sweep chose the options of `run`.
    """
    require_lasting_storage(run.storage)
    if run.run_id is not None:
        raise ConfigError(f"--run-id {run.run_id} names a run, and a sweep names its trials itself; give --sweep-id.")
    storage = run.place
    sweep_id = options.sweep_id or id_of(
        "sweep", Path(run.stream.name.partition("?")[0]).stem[:100], run.method.name[:60]
    )
    require_id(sweep_id, "sweep")
    if run.evaluation.budget is not None and run.evaluation.on_forgetting != "warn":
        raise ConfigError(
            f'evaluation.on-forgetting is "{run.evaluation.on_forgetting}", which ends a trial early, and a sweep '
            'compares whole streams; set it to "warn".'
        )
    if options.seeds < 1 or options.num_samples < 1:
        raise ConfigError(f"seeds is {options.seeds} and num_samples {options.num_samples}; both must be at least 1.")
    axes = tuple(parse_axis(text) for text in options.space)
    run = scored_for_choice(run, options, axes)
    repeated: tuple[Axis, ...] = ()
    if options.seeds > 1:
        seeds = tuple(run.seed + number for number in range(options.seeds))
        repeated = (Axis(field=SEED, kind=GRID, arguments=seeds),)
    if options.orders:
        tasks = plan_stream(replace(run, run_id="first")).stream.task_names
        repeated = (orders_axis(options.orders, tasks, seed=run.seed), *repeated)
    axes = (*axes, *repeated)
    base = replace(
        run,
        run_id=None,
        storage=uri_or_path(storage / sweep_id),
        tracking=replace(run.tracking, uri=tracking_uri(run.tracking, storage))
        if run.tracking.enabled
        else run.tracking,
        cluster=replace(run.cluster, threads_per_worker=threads(run.cluster, options.at_once)),
    )
    require_space(base, axes)
    require_families(base, axes)
    objectives = tuple(parse_objective(text) for text in options.metric)
    num_tasks = most_tasks(base, axes, objectives)
    return Sweep(
        id=sweep_id,
        folder=storage / sweep_id,
        base=base,
        axes=axes,
        share=options.share,
        began_with=began_with,
        repeated=(SEED, *(axis.field for axis in repeated if axis.field == ORDER)),
        search=search_of(options, axes, objectives, num_tasks, seed=run.seed, folder=storage / sweep_id),
    )


def scored_for_choice(run: RunConfig, options: SweepOptions, axes: Sequence[Axis]) -> RunConfig:
    """The run with the rows that its trials are scored on; raises `ConfigError` where trials would differ in them."""
    if run.evaluation.beside or any(axis.field == "evaluation.beside" for axis in axes):
        raise ConfigError(
            "evaluation.beside takes places in the cluster, where a sweep puts trials side by side; set it to 0."
        )
    for axis in axes:
        if axis.field == "evaluation.replies":
            raise ConfigError("the space names evaluation.replies; give one --evaluation.replies for all trials.")
        if axis.field in ("evaluation.split", "stream.validation"):
            raise ConfigError(
                f"the space names {axis.field}, and trials scored on different rows cannot be compared; give "
                "--choose-on-test, or one --stream.validation for all."
            )
    if options.choose_on_test:
        if run.evaluation.split == "validation":
            raise ConfigError("--choose-on-test and --evaluation.split validation contradict each other; give one.")
        return run
    return replace(
        run,
        stream=replace(run.stream, validation=run.stream.validation or VALIDATION_SHARE),
        evaluation=replace(run.evaluation, split="validation"),
    )


def require_families(base: RunConfig, axes: Sequence[Axis]) -> None:
    """Raise `ConfigError` for a method of the space that cannot serve the type of model it would meet."""
    varied = [axis for axis in axes if axis.field.startswith(("method", "backbone."))]
    for ends in itertools.product(*(axis.ends() for axis in varied)):
        run = configured(base, dict(zip((axis.field for axis in varied), ends, strict=True)))
        run.method.check_family(model_source(run.backbone).family_class(), backbone=run.backbone.name)


def most_tasks(base: RunConfig, axes: Sequence[Axis], objectives: Sequence[Objective] = ()) -> int:
    """Tasks or segments of the longest stream among those that the space names; raises `ConfigError` for one that
    cannot be, that a method cannot learn, or that has not the figures of the objectives.
    """
    varied = [axis for axis in axes if axis.field.startswith("stream.") or axis.field == "method"]
    found = []
    for ends in itertools.product(*(axis.ends() for axis in varied)):
        run = configured(base, dict(zip((axis.field for axis in varied), ends, strict=True)))
        stream = plan_stream(replace(run, run_id="first")).stream
        lacked = WITHOUT_BOUNDARIES if stream.mixture is None else WITH_BOUNDARIES
        for goal in objectives:
            if goal.name in lacked:
                which = "has" if stream.mixture is None else "has no"
                raise ConfigError(
                    f"the stream {stream.name} {which} boundaries between its tasks, so it has no {goal.name}; choose "
                    "another --metric, such as final_average."
                )
        found.append(len(stream.steps))
    return max(found)


def threads(cluster: ClusterConfig, at_once: int | None) -> int:
    """Threads of a worker: the CPUs of this process shared by the trials that run together."""
    together = at_once or streams_of_this_machine(cluster)
    return cluster.threads_per_worker or max(1, usable_cpus() // (together * cluster.num_workers))


def search_of(
    options: SweepOptions,
    axes: tuple[Axis, ...],
    objectives: tuple[Objective, ...],
    num_tasks: int,
    *,
    seed: int,
    folder: Place,
) -> Search:
    """Which trials there will be, and which may be ended early; raises `ConfigError`."""
    grace = math.ceil(num_tasks / 2) if options.grace is None else options.grace
    if not 1 <= grace <= num_tasks:
        raise ConfigError(f"grace is {grace}; the stream has {num_tasks} tasks, so give 1 to {num_tasks}.")
    if options.stopping == "asha" and len(objectives) > 1:
        raise ConfigError(f"asha compares trials by one metric, {len(objectives)} were given; use --stopping none.")
    search = Search(objectives=objectives, num_tasks=num_tasks, seed=seed, stopping=options.stopping, grace=grace)
    if options.search == "listed":
        listed = points(axes, num_samples=options.num_samples, seed=seed)
        return replace(search, listed=tuple({repr(values): values for values in listed}.values()))
    for axis in axes:
        if axis.kind == GRID:
            raise ConfigError(f"optuna draws every field and {axis.field} is a grid; write {axis.field}=choice(...).")
    return replace(search, axes=axes, num_samples=options.num_samples, listed=begun_in(folder)[: options.num_samples])


def claim_folder(sweep: Sweep) -> str | None:
    """Create the sweep's folder, or check that the existing one is this sweep; its MLflow run, if it has one."""
    path = sweep.folder / SWEEP_FILE
    if not path.is_file():
        make_folder(sweep.folder)
        return None
    advice = "restore it from a copy, or use another --sweep-id"
    stored = read_object(path, ConfigError, advice)
    with understood(path, ConfigError, advice):
        old, new, mlflow_run = flatten(stored["sweep"]), flatten(identity(sweep)), stored["mlflow_run"]
        if not isinstance(mlflow_run, str | None):
            raise TypeError("mlflow_run is no text")
    different = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if different:
        name = different[0]
        raise ConfigError(
            f"sweep {sweep.id} exists with {name} = {old.get(name)}, this command has {new.get(name)}; use the same "
            "settings to continue it, or another --sweep-id."
        )
    return mlflow_run


def write_record(sweep: Sweep, trials: Sequence[Trial], mlflow_run: str | None) -> None:
    """The sweep as JSON: what it is, and its trials as they stand."""
    content = {
        "sweep": identity(sweep),
        "chosen_on": sweep.base.evaluation.split,
        "trials": [trial.to_json() for trial in trials],
        "mlflow_run": mlflow_run,
        "given": {**sweep.given},
    }
    write_json(sweep.folder / SWEEP_FILE, content)


def identity(sweep: Sweep) -> dict[str, Json]:
    """What makes two commands the same sweep."""
    run = {name: value for name, value in sweep.base.to_json().items() if name not in WHERE}
    space: dict[str, Json] = {axis.field: f"{axis.kind}{axis.arguments}" for axis in sweep.axes}
    return {"run": run, "space": space}


def run_and_record(
    sweep: Sweep, *, at_once: int | None, on_progress: OnProgress, say: Callable[[str], None]
) -> tuple[list[Trial], str | None]:
    """Run the trials and leave the sweep's files and its MLflow run up to date. `say` hears of a signal.

    Returns the trials as they stand, and the link to them in MLflow. Raises `StreamStopped` when the sweep was asked to
    end early, and `KeyboardInterrupt` when that was by a signal (see training/stopping.py).
    """
    tracker = open_sweep_tracker(
        sweep.base.tracking,
        sweep.folder.parent,
        sweep.id,
        params=identity(sweep),
        fields=[axis.field for axis in sweep.axes if axis.field != ORDER],  # MLflow's charts want numbers
        metrics=[goal.name for goal in sweep.search.objectives],
        resume_run_id=claim_folder(sweep),
    )
    write_record(sweep, [], tracker.run_id)
    clear_stop(sweep.folder)
    shared_dir = sweep.folder / SHARED_FOLDER if sweep.share else None
    plan = TrialPlan(
        base=sweep.base,
        parent=tracker.run_id,
        shared_dir=shared_dir,
        keep_stopped=sweep.search.stopping != "none",
    )
    status = "FAILED"
    try:
        with stopping_on_signals(sweep.folder, say) as raise_if_received:
            try:
                trials = run_trials(sweep.search, plan, at_once=at_once, on_progress=on_progress)
            except StreamStopped:
                raise_if_received()
                raise
        keep(sweep, trials, tracker)
        status = "FINISHED"
        return trials, tracker.view
    except (KeyboardInterrupt, StreamStopped):
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


def keep(sweep: Sweep, trials: Sequence[Trial], tracker: SweepTracker) -> None:
    """Write the record, the table, the best configuration and the Pareto picture; the last ones also to MLflow."""
    settings, objectives = settings_of(trials, sweep.repeated), sweep.search.objectives
    write_record(sweep, trials, tracker.run_id)
    lines = [*markdown(*table(settings, objectives)), "", f"Scored on {sweep.base.evaluation.split} rows."]
    write_text(sweep.folder / TABLE_FILE, "\n".join(lines) + "\n")
    best = best_of(settings, objectives[0])
    if best is not None:
        write_json(sweep.folder / BEST_FILE, best_preset(sweep, settings, best))
    picture = draw_pareto(settings, objectives)
    if picture is not None:
        with whole_file(sweep.folder / PARETO_FILE) as partial:
            picture.save(partial, format="PNG")
    tracker.keep(
        figures={} if best is None else best.means,
        best={} if best is None else {**best.values, "chosen_on": sweep.base.evaluation.split},
        table=lines,
        picture=picture,
    )


def best_config(sweep: Sweep, best: Setting) -> RunConfig:
    """The best setting as a run that anyone can start: nothing in it says where the sweep ran.

    It learns from the rows that the trials learned from, and is scored on the test rows.
    """
    config = configured(sweep.base, best.values)
    return replace(
        config,
        storage=RunConfig().storage,
        tracking=TrackingConfig(),
        cluster=ClusterConfig(),
        evaluation=replace(config.evaluation, split="test"),
    )


def best_preset(sweep: Sweep, settings: Sequence[Setting], best: Setting) -> dict[str, Json]:
    """The best setting's configuration, with what it was chosen by."""
    goal = sweep.search.objectives[0]
    chosen: dict[str, Json] = {
        "sweep": sweep.id,
        "on": sweep.base.evaluation.split,
        "by": f"{goal.name} ({goal.mode})",
        "value": best.means[goal.name],
        "settings": len(settings),
        "tied_with": [other.name for other in tied_with(settings, best, goal)],
    }
    if sweep.began_with is not None:
        chosen["began_with"] = {**sweep.began_with}
    return {**best_config(sweep, best).to_json(), "chosen": chosen}


def updates_of(sweep: Sweep, trial: Trial) -> int:
    """Updates that a trial makes which takes nothing over and runs to its end."""
    plan = plan_stream(replace(configured(sweep.base, trial.values), run_id=trial.name))
    return sum(scheduled.num_updates for scheduled in plan.schedule)
