"""A run from its plan to its result, for the commands that learn or go on with a stream."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from components.console.live import Console
from components.core.events import Note, PhaseBegan
from components.core.location import Place
from components.core.lock import sole_user
from components.core.run_files import CONFIG_FILE
from components.evaluation.ledger import differences, run_protocol
from components.evaluation.majority import majority_scores
from components.runs.execute import recorded_as, run_and_record, where_to_look
from components.runs.record import complete_record
from components.runs.records import set_damaged_aside
from components.runs.status import RunStatus, outlook, read_status
from components.training.budget import require_within_budget
from components.training.config import RunConfig
from components.training.dtype_probe import stored_dtype, with_dtype
from components.training.fork import origin_for
from components.training.needs import Needs, close_to_limit, needs_of, require_fit
from components.training.plan import Plan, plan_stream
from components.training.plan_facts import is_large, memory_table, plan_facts, planned_tasks
from components.training.run_folder import StreamResult, check_run_dir, finished_result
from components.training.space import close_to_full, require_space, space_of
from pipelines.cli import StreamCommand
from pipelines.presets import data_note, how_chosen


def learn(config: RunConfig, command: StreamCommand, origin_folder: Place | None) -> int:
    """Plan, train and score the stream of `config`, record it, and show the score matrix; the exit code.

    `origin_folder`: of the run that `command` continues from.
    """
    with closing(Console()) as console:  # it may have begun to say what goes on
        return _learn(config, command, origin_folder, console)


def _learn(config: RunConfig, command: StreamCommand, origin_folder: Place | None, console: Console) -> int:
    origin = None
    console.handle(PhaseBegan(phase="planning the run"))
    config = with_known_dtype(config, lambda text: console.handle(Note(text=text)))
    if origin_folder is not None:
        origin = origin_for(config, origin_folder, command.at_task, score_again=command.score_again)
    plan = replace(plan_stream(config, origin), chosen=how_chosen(command.preset))
    needs = needs_of(plan)
    show_plan(console, plan, needs, taken=command.dry_run)
    other_data = data_note(command.preset, config, plan.stream.digest)
    if other_data is not None:
        console.handle(Note(text=other_data, warning=True))
    result = None
    if not command.dry_run:
        set_damaged_aside(plan.run_dir, recorded_as, console.handle)
        result = finished_result(plan, console.handle)
    if result is None:
        require_fit(plan, needs)
        require_space(plan, needs)
    if command.dry_run:
        check_run_dir(plan)
        return 0
    if result is None:
        waited = (lambda text: console.handle(Note(text=text))) if command.wait else None
        with sole_user(plan.run_dir, f"run {plan.run_dir.name}", wait=waited):
            # Again: the process that was waited for may have ended the run.
            result = finished_result(plan)
            if result is None:
                require_within_budget(plan)
                result = train_and_record(plan, console)
    else:
        complete_record(plan, console.handle)
    show_result(console, plan, result)
    require_within_budget(plan)
    return 0


def with_known_dtype(config: RunConfig, say: Callable[[str], None]) -> RunConfig:
    """The configuration with `backbone.dtype` auto as what the run began with, or as what is quicker here."""
    path = config.place / str(config.run_id) / CONFIG_FILE
    return replace(config, backbone=with_dtype(config.backbone, stored_dtype(path), say))


def train_and_record(plan: Plan, console: Console) -> StreamResult:
    """Run the stream with the console and MLflow following it."""
    try:
        return run_and_record(plan, console.handle)
    finally:
        console.close()


def show_plan(console: Console, plan: Plan, needs: Needs, *, taken: bool = False) -> None:
    """What will be trained: tasks, updates, processes, and what it takes. `taken`: also what a taken run id is."""
    evaluation = plan.config.evaluation
    facts = plan_facts(plan, needs)
    if taken and plan.run_dir.is_dir():
        found = read_status(plan.run_dir)
        said = outlook(found) if isinstance(found, RunStatus) else "the folder of a sweep; choose another --run-id"
        facts = {"run": facts.pop("run"), "run id": said, **facts}
    console.print_plan(
        planned_tasks(plan),
        facts,
        zero_shot=evaluation.zero_shot,
        scored_on=evaluation.split,
        beside=evaluation.beside > 0,
    )
    if is_large(needs):
        each = "GPU" if needs.for_gpu else "worker"
        console.print_memory(memory_table(plan, needs), each=each)
    for near in (close_to_limit(needs), close_to_full(space_of(plan, needs))):
        if near is not None:
            console.handle(Note(text=near, warning=True))
    for warning in plan.fitted.warnings:
        console.handle(Note(text=warning, warning=True))


def show_result(console: Console, plan: Plan, result: StreamResult) -> None:
    """The matrix, its figures, where everything is, and all of it in one sentence."""
    majority = majority_scores(plan.stream, plan.config.evaluation.limit)
    console.print_matrix(result.matrix, result.variants, majority)
    console.print_general(result.general, result.matrix.summary().get("final_average"))
    evaluation = plan.config.evaluation
    if evaluation.split == "test" and evaluation.replies == "generated":  # as published figures are
        protocol = run_protocol(plan.config.backbone.name, plan.stream.task_names)
        console.print_ledger(
            differences(
                plan.stream.name, plan.config.method.name, result.matrix, protocol, result.variants.get("compat")
            )
        )
    names = ("score_matrix.json", *(("general.json",) if plan.suites else ()), "predictions", "checkpoints")
    paths = {name: str(plan.run_dir / name) for name in names}
    console.print_outcome(paths, where_to_look(plan))
    console.print_summary(result.matrix, majority)
