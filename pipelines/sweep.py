"""Sweep fields of a run with Ray Tune, on figures of validation rows. By default: pool size x rank of Continual LLaVA.

    python pipelines/sweep.py [PRESET] [--space FIELD=VALUES ...] [--metric NAME ...] [--sweep-id ID] [--dotted.field V]
    python pipelines/sweep.py --space method.rank=4,8,16 "training.optimizer.learning_rate=loguniform(1e-4,1e-2)"

Every trial is a run in a folder of its own; the same command with the same --sweep-id goes on where a sweep was killed.
Trials are scored on the validation part of the training rows, which none of them learns from; best.json then trains on
the same rows and is scored on the test rows.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("sweep"))

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from components.console.tables import print_table
from components.core.errors import ConfigError
from components.core.files import write_json
from components.core.lock import sole_user
from components.core.machine import usable_cpus
from components.core.naming import id_of, require_id
from components.core.ray_session import ray_session
from components.core.shell import pipeline_command
from components.tracking.config import TrackingConfig, tracking_uri, ui_command
from components.tracking.sweep import SweepTracker, open_sweep_tracker
from components.training.config import Chosen, ClusterConfig, Json, RunConfig, flatten
from components.training.plan import plan_stream, require_lasting_storage
from components.tuning.objective import Objective, parse_objective
from components.tuning.results import (
    ORDER,
    SEED,
    Setting,
    best_of,
    draw_pareto,
    settings_of,
    table,
    tied_with,
    verdict,
)
from components.tuning.search import Progress, Search, Stopping, run_trials, streams_of_this_machine
from components.tuning.space import (
    GRID,
    WHERE,
    Axis,
    configured,
    orders_axis,
    parse_axis,
    points,
    require_space,
    trial_name,
)
from components.tuning.trials import LEARNED, Figures, Trial, TrialPlan, begun_in
from pipelines.cli import Command, parse
from pipelines.littoral import program
from pipelines.presets import how_chosen
from pipelines.report import markdown

DEFAULT_SPACE = ("method.slots_per_task=grid(4, 8)", "method.rank=grid(4, 8)")
FEW_ROWS = 20  # validation rows of a task below which a choice by them is mostly chance
VALIDATION_SHARE = 0.2  # of the training rows, where the run names none
SWEEP_FILE, BEST_FILE, TABLE_FILE, PARETO_FILE = "sweep.json", "best.json", "table.md", "pareto.png"
EXAMPLES = """\
  sweep.py --space method.rank=4,8 --seeds 3
  sweep.py --method lcia --space "method.threshold=grid(0.0, 0.5, 0.9)"
  sweep.py --space "method=sequential_lora,moelora" --orders 2"""


@dataclass(frozen=True, kw_only=True)
class SweepCommand(Command):
    """A run's options, and what to vary."""

    space: tuple[str, ...] = DEFAULT_SPACE
    """FIELD=VALUES each: grid(...) or a list for every value; choice, uniform, loguniform, randint, ... to draw."""
    metric: tuple[str, ...] = ("final_average",)
    """What to raise or lower (NAME or NAME:max / NAME:min); several give a Pareto front, the first one decides."""
    search: Literal["listed", "optuna"] = "listed"
    """listed: every grid point, with --num-samples draws of what is drawn; optuna: TPE chooses (extra `optuna`)."""
    num_samples: int = 10
    """Draws for each grid point; for optuna: trials in all."""
    choose_on_test: bool = False
    """Score the trials on test rows instead of validation rows: for a comparison in which nothing is chosen, or for a
    choice that says so in best.json, in sweep.json and on the screen."""
    seeds: int = 1
    """Seeds for every setting: seed, seed + 1, ...; figures are then means over them."""
    stopping: Stopping = "none"
    """asha ends trials that are behind at equal numbers of learned tasks; none: what a published number needs."""
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
    folder: Path
    base: RunConfig  # storage and tracking are those of the trials
    axes: tuple[Axis, ...]
    search: Search
    share: bool
    repeated: tuple[str, ...]  # fields whose values repeat a setting
    began_with: Chosen | None = None  # how an earlier sweep chose the options that all trials share


def main(arguments: Sequence[str]) -> int:
    """Check the space, run the trials, show what they found."""
    command = parse(
        arguments,
        program=program("sweep"),
        description=(__doc__ or "").split("\n\n")[0],
        kind=SweepCommand,
        default_preset="coast-nano",
        examples=EXAMPLES,
    )
    console = Console(highlight=False)
    sweep = plan_sweep(command)
    if command.print_config:
        print(json.dumps(identity(sweep), indent=2))
        return 0
    show_plan(sweep, console)
    if command.dry_run:
        return 0
    cluster = sweep.base.cluster
    together = command.at_once or streams_of_this_machine(cluster)
    with sole_user(sweep.folder, f"sweep {sweep.id}"):
        claim_folder(sweep)
        with ray_session(cluster.address, num_workers=cluster.num_workers, trials=together):
            trials, view = run_and_follow(sweep, command.at_once, console)
    show_results(sweep, trials, view, console)
    return 0 if all(trial.state in ("finished", "stopped") for trial in trials) else 1


def plan_sweep(command: SweepCommand) -> Sweep:
    """Resolve and check everything that can be checked before a process starts; raises `ConfigError`."""
    run = command.run
    require_lasting_storage(run.storage)
    if run.run_id is not None:
        raise ConfigError(f"--run-id {run.run_id} names a run, and a sweep names its trials itself; give --sweep-id.")
    storage = run.storage.expanduser().resolve()
    sweep_id = command.sweep_id or id_of("sweep", Path(run.stream.name).stem[:100], run.method.name[:60])
    require_id(sweep_id, "sweep")
    if command.seeds < 1 or command.num_samples < 1:
        raise ConfigError(f"seeds is {command.seeds} and num_samples {command.num_samples}; both must be at least 1.")
    axes = tuple(parse_axis(text) for text in command.space)
    run = scored_for_choice(command, axes)
    repeated: tuple[Axis, ...] = ()
    if command.seeds > 1:
        seeds = tuple(run.seed + number for number in range(command.seeds))
        repeated = (Axis(field=SEED, kind=GRID, arguments=seeds),)
    if command.orders:
        tasks = plan_stream(replace(run, run_id="first")).stream.task_names
        repeated = (orders_axis(command.orders, tasks, seed=run.seed), *repeated)
    axes = (*axes, *repeated)
    base = replace(
        run,
        run_id=None,
        storage=storage / sweep_id,
        tracking=replace(run.tracking, uri=tracking_uri(run.tracking, storage)),
        cluster=replace(run.cluster, threads_per_worker=threads(command)),
    )
    require_space(base, axes)
    num_tasks = most_tasks(base, axes)
    objectives = tuple(parse_objective(text) for text in command.metric)
    return Sweep(
        id=sweep_id,
        folder=storage / sweep_id,
        base=base,
        axes=axes,
        share=command.share,
        began_with=how_chosen(command.preset),
        repeated=(SEED, *(axis.field for axis in repeated if axis.field == ORDER)),
        search=search_of(command, axes, objectives, num_tasks, storage / sweep_id),
    )


def scored_for_choice(command: SweepCommand, axes: Sequence[Axis]) -> RunConfig:
    """The run with the rows that its trials are scored on; raises `ConfigError` where trials would differ in them."""
    run = command.run
    for axis in axes:
        if axis.field in ("evaluation.split", "stream.validation"):
            raise ConfigError(
                f"the space names {axis.field}, and trials scored on different rows cannot be compared; give "
                "--choose-on-test, or one --stream.validation for all."
            )
    if command.choose_on_test:
        if run.evaluation.split == "validation":
            raise ConfigError("--choose-on-test and --evaluation.split validation contradict each other; give one.")
        return run
    return replace(
        run,
        stream=replace(run.stream, validation=run.stream.validation or VALIDATION_SHARE),
        evaluation=replace(run.evaluation, split="validation"),
    )


def most_tasks(base: RunConfig, axes: Sequence[Axis]) -> int:
    """Tasks of the longest stream among those that the space names; raises `ConfigError` for one that cannot be."""
    varied = [axis for axis in axes if axis.field.startswith("stream.")]
    found = []
    for ends in itertools.product(*(axis.ends() for axis in varied)):
        run = configured(base, dict(zip((axis.field for axis in varied), ends, strict=True)))
        found.append(len(plan_stream(replace(run, run_id="first")).stream.tasks))
    return max(found)


def threads(command: SweepCommand) -> int:
    """Threads of a worker: the CPUs of this process shared by the trials that run together."""
    cluster = command.run.cluster
    together = command.at_once or streams_of_this_machine(cluster)
    return cluster.threads_per_worker or max(1, usable_cpus() // (together * cluster.num_workers))


def search_of(
    command: SweepCommand, axes: tuple[Axis, ...], objectives: tuple[Objective, ...], num_tasks: int, folder: Path
) -> Search:
    """Which trials there will be, and which may be ended early; raises `ConfigError`."""
    grace = math.ceil(num_tasks / 2) if command.grace is None else command.grace
    if not 1 <= grace <= num_tasks:
        raise ConfigError(f"grace is {grace}; the stream has {num_tasks} tasks, so give 1 to {num_tasks}.")
    if command.stopping == "asha" and len(objectives) > 1:
        raise ConfigError(f"asha compares trials by one metric, {len(objectives)} were given; use --stopping none.")
    search = Search(
        objectives=objectives, num_tasks=num_tasks, seed=command.run.seed, stopping=command.stopping, grace=grace
    )
    if command.search == "listed":
        listed = points(axes, num_samples=command.num_samples, seed=command.run.seed)
        return replace(search, listed=tuple({trial_name(values): values for values in listed}.values()))
    for axis in axes:
        if axis.kind == GRID:
            raise ConfigError(f"optuna draws every field and {axis.field} is a grid; write {axis.field}=choice(...).")
    return replace(search, axes=axes, num_samples=command.num_samples, listed=begun_in(folder)[: command.num_samples])


def claim_folder(sweep: Sweep) -> str | None:
    """Create the sweep's folder, or check that the existing one is this sweep; its MLflow run, if it has one."""
    path = sweep.folder / SWEEP_FILE
    if not path.is_file():
        sweep.folder.mkdir(parents=True, exist_ok=True)
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    old, new = flatten(stored["sweep"]), flatten(identity(sweep))
    different = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if different:
        name = different[0]
        raise ConfigError(
            f"sweep {sweep.id} exists with {name} = {old.get(name)}, this command has {new.get(name)}; use the same "
            "settings to continue it, or another --sweep-id."
        )
    return stored["mlflow_run"]


def write_record(sweep: Sweep, trials: Sequence[Trial], mlflow_run: str | None) -> None:
    """The sweep as JSON: what it is, and its trials as they stand."""
    content = {
        "sweep": identity(sweep),
        "chosen_on": sweep.base.evaluation.split,
        "trials": [trial.to_json() for trial in trials],
        "mlflow_run": mlflow_run,
    }
    write_json(sweep.folder / SWEEP_FILE, content)


def identity(sweep: Sweep) -> dict[str, Json]:
    """What makes two commands the same sweep."""
    run = {name: value for name, value in sweep.base.to_json().items() if name not in WHERE}
    space: dict[str, Json] = {axis.field: f"{axis.kind}{axis.arguments}" for axis in sweep.axes}
    return {"run": run, "space": space}


def run_and_follow(sweep: Sweep, at_once: int | None, console: Console) -> tuple[list[Trial], str | None]:
    """Run the trials, tell of every learned task, and leave the sweep's files and its MLflow run up to date.

    The trials as they stand, and the link to them in MLflow.
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
    shared_dir = sweep.folder / "shared" if sweep.share else None
    plan = TrialPlan(
        base=sweep.base,
        parent=tracker.run_id,
        shared_dir=shared_dir,
        keep_stopped=sweep.search.stopping != "none",
    )
    status = "FAILED"
    try:
        trials = run_trials(sweep.search, plan, at_once=at_once, on_progress=teller(sweep, console))
        keep(sweep, trials, tracker)
        status = "FINISHED"
        return trials, tracker.view
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


def teller(sweep: Sweep, console: Console) -> Progress:
    """Prints one line for every learned task of every trial."""
    first = sweep.search.objectives[0].name

    def tell(name: str, figures: Figures | None) -> None:
        if figures is None:
            console.print(f"[red]{name} failed[/red]", soft_wrap=True)
        elif first in figures:
            learned, num_tasks = int(figures[LEARNED]), sweep.search.num_tasks
            reached = f"{learned} of {num_tasks} tasks, {first.replace('_', ' ')} {figures[first]:.2f}"
            console.print(f"{name}: {reached}", soft_wrap=True)

    return tell


def keep(sweep: Sweep, trials: Sequence[Trial], tracker: SweepTracker) -> None:
    """Write the record, the table, the best configuration and the Pareto picture; the last ones also to MLflow."""
    settings, objectives = settings_of(trials, sweep.repeated), sweep.search.objectives
    write_record(sweep, trials, tracker.run_id)
    lines = [*markdown(*table(settings, objectives)), "", f"Scored on {sweep.base.evaluation.split} rows."]
    (sweep.folder / TABLE_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    best = best_of(settings, objectives[0])
    if best is not None:
        write_json(sweep.folder / BEST_FILE, best_preset(sweep, settings, best))
    picture = draw_pareto(settings, objectives)
    if picture is not None:
        picture.save(sweep.folder / PARETO_FILE)
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


def show_plan(sweep: Sweep, console: Console) -> None:
    """What will be tried."""
    search = sweep.search
    number = search.num_samples if search.axes else len(search.listed)
    console.print(f"[bold]sweep:[/bold] {sweep.folder}", soft_wrap=True)
    for axis in sweep.axes:
        console.print(f"  {axis.field} = {axis.kind}{axis.arguments}", markup=False, soft_wrap=True)
    goals = ", ".join(f"{goal.name} ({goal.mode})" for goal in search.objectives)
    ends = "all run to their end" if search.stopping == "none" else f"asha may end them from {search.grace} tasks on"
    console.print(f"{number} trials of {search.num_tasks} tasks for {goals}; {ends}", soft_wrap=True)
    if sweep.base.evaluation.split == "validation":
        tasks = plan_stream(replace(sweep.base, run_id="first")).stream.tasks
        rows = sorted(min(task.test.num_rows, sweep.base.evaluation.limit or task.test.num_rows) for task in tasks)
        console.print(
            f"scored on validation rows, {sweep.base.stream.validation:.0%} of the training rows, which no trial "
            f"learns from; {rows[0]}{f' to {rows[-1]}' if rows[-1] > rows[0] else ''} of a task are answered",
            soft_wrap=True,
        )
        if rows[0] < FEW_ROWS:
            console.print(
                f"[bold yellow]Warning: with {rows[0]} rows one reply is {100 / rows[0]:.0f} points of a task's score; "
                "take more training rows, a larger --stream.validation, or more --seeds.[/bold yellow]",
                soft_wrap=True,
            )
    else:
        console.print(
            "[bold yellow]Warning: trials are scored on test rows; for a setting that is chosen by them, these figures "
            "are no test.[/bold yellow]",
            soft_wrap=True,
        )


def show_results(sweep: Sweep, trials: Sequence[Trial], view: str | None, console: Console) -> None:
    """The table, the best setting, what was saved, and where everything is."""
    settings = settings_of(trials, sweep.repeated)
    header, lines = table(settings, sweep.search.objectives)
    print_table([name.rpartition(".")[2] for name in header], lines, console)
    made, whole = sum(trial.updates for trial in trials), sum(updates_of(sweep, trial) for trial in trials)
    alone = f", {whole} had each learned all of its tasks itself and to the end" if made != whole else ""
    console.print(f"The trials made {made} optimizer updates{alone}.", soft_wrap=True)
    goal, rows = sweep.search.objectives[0], sweep.base.evaluation.split
    best = best_of(settings, goal)
    if best is None:
        console.print("No setting ran to the end of the stream, so none is called the best.")
    else:
        console.print(verdict(settings, best, goal, rows), markup=False, soft_wrap=True)
        again = "Train it again and score the test rows" if rows == "validation" else "Run it again"
        console.print(
            f"{again}: {pipeline_command('coast.py', sweep.folder / BEST_FILE)}", soft_wrap=True, markup=False
        )
    if sweep.base.tracking.enabled and sweep.base.tracking.uri is not None:
        console.print(f"Compare trials: {ui_command(sweep.base.tracking.uri)}", soft_wrap=True, markup=False)
        console.print(f"and open: {view}", soft_wrap=True, markup=False)
