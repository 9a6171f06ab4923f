"""Take a task out of what a run has learned, as a new run, and score what stays. For methods whose tasks own their
parameters; the old run is not changed.

    littoral unlearn RUN TASK [--run-id NEW] [--partial] [--dry-run]

A method that shares what its tasks learn refuses. Where others keep traces of the task, it refuses without --partial.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("unlearn"))

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from components.console.live import Console
from components.core.files import write_json
from components.core.location import place
from components.core.lock import sole_user
from components.core.run_files import CONFIG_FILE
from components.core.visible import print_text
from components.evaluation.matrix import MATRIX_FILE, Cell, ScoreMatrix
from components.runs.record import complete_record
from components.training.fork import without_task
from components.training.lineage import Origin, Unlearned
from components.training.needs import needs_of, require_fit
from components.training.plan import Plan, plan_stream
from components.training.run_folder import StreamResult, check_run_dir, finished_result
from components.training.space import require_space
from pipelines.learning import show_result, train_and_record
from pipelines.littoral import read_options
from pipelines.status import folder_of

UNLEARNED_FILE = "unlearned.json"  # what each task scored before and after


@dataclass(frozen=True, kw_only=True)
class Unlearn:
    """Which task of which run, and the run that is made."""

    run: Annotated[str, tyro.conf.Positional]
    """The run that has learned the task: its id in the storage, or its folder or URI."""
    task: Annotated[str, tyro.conf.Positional]
    """The task to take out, by its name in the stream."""
    run_id: str | None = None
    """Id of the new run; without it, RUN-without-TASK."""
    storage: str | None = None
    """Folder of the new run, a path or a URI, and of RUN where that is an id; without it `runs`, or where RUN is."""
    tracking_uri: Annotated[str | None, tyro.conf.arg(name="tracking.uri")] = None
    """MLflow's store for the new run; without it, that of RUN's settings."""
    untracked: Annotated[bool, tyro.conf.arg(name="tracking.no-enabled"), tyro.conf.FlagCreatePairsOff] = False
    """Do not record the new run to MLflow."""
    partial: bool = False
    """Also where other tasks learned something from this one and keep it; the new run says what."""
    dry_run: bool = False
    """Say what would be done, and write nothing."""
    debug: bool = False
    """A traceback instead of one sentence."""


def main(arguments: Sequence[str]) -> int:
    """Plan, take the task out, score, and show what each task scored before and after."""
    command = read_options(Unlearn, arguments, name="unlearn", description=__doc__)
    folder = folder_of(command.run, place(command.storage or "runs"))
    config, origin = without_task(
        folder,
        command.task,
        run_id=command.run_id,
        storage=place(command.storage) if command.storage else folder.parent,
        partial=command.partial,
    )
    tracking = replace(config.tracking, uri=command.tracking_uri or config.tracking.uri)
    if command.untracked:
        tracking = replace(tracking, enabled=False)
    config = replace(config, tracking=tracking)
    plan, console = plan_stream(config, origin), Console()
    assert origin.unlearned is not None
    print_text(facts(plan, origin, origin.unlearned))
    check_run_dir(plan)
    if command.dry_run:
        return 0
    result = finished_result(plan, console.handle)
    if result is None:
        needs = needs_of(plan)
        require_fit(plan, needs)
        require_space(plan, needs)
        with sole_user(plan.run_dir, f"run {plan.run_dir.name}"):
            result = finished_result(plan) or train_and_record(plan, console)
    else:
        complete_record(plan, console.handle)
    show_result(console, plan, result)
    print_text(compared(plan, origin.unlearned, before_of(origin, origin.unlearned), result))
    return 0


def facts(plan: Plan, origin: Origin, unlearned: Unlearned) -> str:
    """The old run and the new one, and what stays of the task."""
    kept = ", ".join(origin.tasks)
    stays = f"stays of it: {unlearned.traces}" if unlearned.traces else "nothing of it stays"
    begun = " (begun already)" if (plan.run_dir / CONFIG_FILE).is_file() else ""
    return (
        f"run {origin.run}, checkpoint {unlearned.checkpoint}: task {unlearned.task} is taken out, {stays}\n"
        f"new run {plan.run_dir}{begun}: keeps {kept}; all are scored, {unlearned.task} too"
    )


def before_of(origin: Origin, unlearned: Unlearned) -> dict[str, Cell]:
    """The old run's scores after its last learned task; empty where it has none, or is gone."""
    path, after = origin.place / MATRIX_FILE, unlearned.learned[-1]
    if not path.is_file():
        return {}
    matrix = ScoreMatrix.read(path)
    if after not in matrix.after:
        return {}
    return dict(zip(matrix.tasks, matrix.rows[matrix.after.index(after)], strict=True))


def compared(plan: Plan, unlearned: Unlearned, before: dict[str, Cell], result: StreamResult) -> str:
    """What each task scored before and after, which unlearned.json keeps."""
    path, after = plan.run_dir / UNLEARNED_FILE, dict(zip(result.matrix.tasks, result.matrix.rows[-1], strict=True))
    if before or not path.is_file():
        write_json(
            path,
            {
                "task": unlearned.task,
                "checkpoint": unlearned.checkpoint,
                "digest": unlearned.digest,
                "traces": unlearned.traces,
                "before": {task: before.get(task) for task in after},
                "after": after,
            },
        )
    lines = [f"{task}: {_figure(before.get(task))} before, {_figure(score)} after" for task, score in after.items()]
    return "\n".join([*lines[:-1], f"{lines[-1]} (unlearned)"])


def _figure(score: Cell) -> str:
    return "-" if score is None else f"{score:.1f}"
