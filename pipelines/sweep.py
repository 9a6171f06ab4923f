"""Vary options of a run with Ray Tune and choose by validation scores. By default: pool size x rank of Continual LLaVA.

    littoral sweep [PRESET] [--space FIELD=VALUES ...] [--metric NAME ...] [--sweep-id ID] [--dotted.field V]
    littoral sweep --space method.rank=4,8,16 "training.optimizer.learning_rate=loguniform(1e-4,1e-2)"

Every trial is a run with its own folder; the same command with the same --sweep-id continues a sweep that was killed.
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

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from components.console.tables import print_table
from components.console.terminal import Terminal
from components.core.location import uri_or_path
from components.core.lock import sole_user
from components.core.ray_session import ray_session
from components.core.run_files import SWEEP_FILE
from components.core.shell import pipeline_command
from components.core.visible import print_text
from components.runs.continuing import given_as
from components.tracking.config import ui_command
from components.training.dtype_probe import require_no_auto, stored_dtype, with_dtype
from components.training.placement import require_scorers
from components.training.plan import plan_stream
from components.tuning.results import best_of, settings_of, table, verdict
from components.tuning.search import OnProgress, streams_of_this_machine
from components.tuning.sweep import (
    BEST_FILE,
    Sweep,
    SweepOptions,
    claim_folder,
    identity,
    plan_sweep,
    run_and_record,
    updates_of,
)
from components.tuning.trials import LEARNED, Figures, Trial
from pipelines.cli import Command, parse, taken
from pipelines.littoral import program
from pipelines.presets import how_chosen

FEW_ROWS = 20  # validation rows of a task below which a choice by them is mostly chance
FIRST = (  # what `--help` shows
    "--space",
    "--metric",
    "--search",
    "--num-samples",
    "--seeds",
    "--orders",
    "--stopping",
    "--at-once",
    "--sweep-id",
    "--storage",
    "--stream.name",
    "--training.updates-per-task",
    "--dry-run",
)
EXAMPLES = {
    "--space method.rank=4,8 --seeds 3": "two ranks, each with three seeds",
    '--space "method=sequential_lora,moelora" --orders 2': "two methods, two orders each",
}


@dataclass(frozen=True, kw_only=True)
class SweepCommand(SweepOptions, Command):
    """A run's options, and what to vary."""


def main(arguments: Sequence[str]) -> int:
    """Check the space, run the trials, show what they found."""
    command = parse(
        arguments,
        program=program("sweep"),
        description=(__doc__ or "").split("\n\n")[0],
        kind=SweepCommand,
        default_preset="coast-nano",
        first=FIRST,
        examples=EXAMPLES,
    )
    require_scorers(command.run.evaluation)
    console = Terminal(highlight=False, soft_wrap=True)
    sweep = plan_sweep(command.run, command, began_with=how_chosen(command.preset))
    sweep = replace(sweep, given=given_as(kept_arguments(arguments), sweep.base.tracking))
    if command.print_config:
        print_text(json.dumps(identity(sweep), indent=2))
        return 0
    show_plan(sweep, console)
    if command.dry_run:
        return 0
    for axis in sweep.axes:
        if axis.field == "backbone.dtype":
            require_no_auto(axis.arguments)
    stored = stored_dtype(sweep.folder / SWEEP_FILE, "sweep", "run")
    backbone = with_dtype(command.run.backbone, stored, console.print)
    if backbone != command.run.backbone:  # planned anew, so that nothing has the option as it was given
        planned = plan_sweep(replace(command.run, backbone=backbone), command, began_with=how_chosen(command.preset))
        sweep = replace(planned, given=sweep.given)
    cluster = sweep.base.cluster
    together = command.at_once or streams_of_this_machine(cluster)
    with sole_user(sweep.folder, f"sweep {sweep.id}", wait=console.print if command.wait else None):
        claim_folder(sweep)
        again = f"run the same command with --sweep-id {sweep.id} to continue"
        with ray_session(cluster.address, num_workers=cluster.num_workers, trials=together, again=again):
            trials, view = run_and_record(
                sweep, at_once=command.at_once, on_progress=teller(sweep, console), say=console.print
            )
    show_results(sweep, trials, view, console)
    return 0 if all(trial.state in ("finished", "stopped") for trial in trials) else 1


def kept_arguments(arguments: Sequence[str]) -> list[str]:
    """Those that make the sweep what it is: not its id, its place and its store, and not how this start is shown."""
    words = [word.partition("=") for word in arguments]
    rest = [
        (name.replace("_", "-") if name.startswith("--") else name) + equals + value for name, equals, value in words
    ]
    for flag in ("--sweep-id", "--storage", "--tracking.uri"):
        rest = taken(rest, flag)[0]
    return [word for word in rest if word not in ("--wait", "--debug")]


def teller(sweep: Sweep, console: Console) -> OnProgress:
    """Prints one line for every learned task of every trial."""
    first = sweep.search.objectives[0].name

    def tell(name: str, figures: Figures | None) -> None:
        if figures is None:
            console.print(f"[red]{name} failed[/red]")
        elif first in figures:
            learned, num_tasks = int(figures[LEARNED]), sweep.search.num_tasks
            reached = f"{learned} of {num_tasks} tasks, {first.replace('_', ' ')} {figures[first]:.2f}"
            console.print(f"{name}: {reached}")

    return tell


def show_plan(sweep: Sweep, console: Console) -> None:
    """What will be tried."""
    search = sweep.search
    number = search.num_samples if search.axes else len(search.listed)
    console.print(f"[bold]sweep:[/bold] {sweep.folder}")
    for axis in sweep.axes:
        console.print(f"  {axis.field} = {axis.kind}{axis.arguments}", markup=False)
    goals = ", ".join(f"{goal.name} ({goal.mode})" for goal in search.objectives)
    ends = "all run to their end" if search.stopping == "none" else f"asha may end them from {search.grace} tasks on"
    trials = f"{number} {'trial' if number == 1 else 'trials'}"
    tasks = f"{search.num_tasks} {'task' if search.num_tasks == 1 else 'tasks'}"
    console.print(f"{trials} of {tasks} for {goals}; {ends}")
    if sweep.base.evaluation.split == "validation":
        scored = plan_stream(replace(sweep.base, run_id="first")).stream.tasks
        rows = sorted(min(task.test.num_rows, sweep.base.evaluation.limit or task.test.num_rows) for task in scored)
        console.print(
            f"scored on validation rows, {sweep.base.stream.validation:.0%} of the training rows, which no trial "
            f"trains on; {rows[0]}{f' to {rows[-1]}' if rows[-1] > rows[0] else ''} of a task are answered",
        )
        if rows[0] < FEW_ROWS:
            console.print(
                f"[bold yellow]Warning: with {rows[0]} rows one reply is {100 / rows[0]:.0f} points of a task's score; "
                "take more training rows, a larger --stream.validation, or more --seeds.[/bold yellow]",
            )
    else:
        console.print(
            "[bold yellow]Warning: trials are scored on test rows; the scores of a setting chosen this way are not "
            "test results.[/bold yellow]",
        )


def show_results(sweep: Sweep, trials: Sequence[Trial], view: str | None, console: Console) -> None:
    """The table, the best setting, what was saved, and where everything is."""
    settings = settings_of(trials, sweep.repeated)
    header, lines = table(settings, sweep.search.objectives)
    print_table([name.rpartition(".")[2] for name in header], lines)
    made, whole = sum(trial.updates for trial in trials), sum(updates_of(sweep, trial) for trial in trials)
    alone = f"; without shared tasks and early stopping they would have made {whole}" if made != whole else ""
    console.print(f"The trials made {made} optimizer updates{alone}.")
    goal, rows = sweep.search.objectives[0], sweep.base.evaluation.split
    best = best_of(settings, goal)
    if best is None:
        console.print("No setting ran to the end of the stream, so none is called the best.")
    else:
        console.print(verdict(settings, best, goal, rows), markup=False)
        again = "Train it again and score the test rows" if rows == "validation" else "Run it again"
        console.print(
            f"{again}: {pipeline_command('coast.py', uri_or_path(sweep.folder / BEST_FILE))}",
            soft_wrap=True,
            markup=False,
        )
    if sweep.base.tracking.enabled and sweep.base.tracking.uri is not None:
        console.print(f"Compare trials: {ui_command(sweep.base.tracking.uri)}", markup=False)
        console.print(f"and open: {view}", markup=False)
