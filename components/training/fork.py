"""`coast --continue-from RUN` and `unlearn RUN TASK`: whether a new run can begin with what another one has learned."""

from __future__ import annotations

from dataclasses import replace

from components.core.checkpoint import read_checkpoint
from components.core.errors import CheckpointError, ConfigError, LittoralError
from components.core.files import file_sha256
from components.core.location import Place, folder_at, uri_or_path
from components.core.naming import id_of
from components.core.reading import read_object, understood
from components.core.run_files import CONFIG_FILE, KEPT_CHECKPOINTS, LINK_FILE, STATE_FILE
from components.data.stream_config import StreamConfig
from components.evaluation.matrix import MATRIX_FILE, ZERO_SHOT, ScoreMatrix
from components.training.config import Json, RunConfig, flatten
from components.training.lineage import Origin, Part, Unlearned, read_origin
from components.training.plan import Plan, plan_stream
from components.training.run_folder import learned_in
from components.training.same_run import EXECUTION
from components.training.unlearn import forget

ADVICE = "restore the file from a copy of the run's folder, or continue from another run"


def origin_for(config: RunConfig, folder: Place, at_task: int | None, *, score_again: bool) -> Origin:
    """The origin of the run `config` that continues from `folder`: kept since its start, or new.

    A run that has begun needs `folder` no more. Raises `ConfigError` for one that began otherwise, and as `new_origin`.
    """
    assert config.run_id is not None
    run_dir = config.place / config.run_id
    if not (run_dir / CONFIG_FILE).is_file():
        return new_origin(config, folder, at_task, score_again=score_again)
    known = read_origin(run_dir)
    if known is None or known.run != folder.name or at_task not in (None, known.at_task):
        began = "without another run" if known is None else f"from run {known.named}"
        raise ConfigError(f"run {config.run_id} exists and began {began}; use another --run-id.")
    return known


def new_origin(config: RunConfig, folder: Place, at_task: int | None, *, score_again: bool) -> Origin:
    """What the run `config` takes over from the run in `folder`, after `at_task` tasks (None: after the newest).

    Raises `ConfigError` where that one has not learned so far, or learned with another method, backbone, seed or
    scoring, or on data that are not there any more; `CheckpointError` where its checkpoint is gone.
    """
    plan = _plan_of(folder)
    name, tasks = folder.name, plan.stream.task_names
    if plan.config.method.data_scope == "union":
        raise ConfigError(
            f"run {name} learned all of its tasks at once ({plan.config.method.name}), so there is no task to continue "
            "from; learn old and new tasks together in a new run."
        )
    kept = [(folder / KEPT_CHECKPOINTS / f"{index:02d}-{task}") for index, task in enumerate(tasks, 1)]
    learned = max((index for index, path in enumerate(kept, 1) if (path / STATE_FILE).is_file()), default=0)
    scored = learned_in(folder)
    number = at_task or learned
    if not 1 <= number <= max(learned, scored):
        raise ConfigError(
            f"run {name} has learned {max(learned, scored)} of its {len(tasks)} tasks"
            + (f", not {number}; give --at-task a smaller number." if learned else "; there is none to continue from.")
        )
    if not (kept[number - 1] / STATE_FILE).is_file():
        raise CheckpointError(f"run {name} has no checkpoint {kept[number - 1]} any more; choose another --at-task.")
    _require_scored(folder, plan, number)
    _require_alike(name, plan, config)
    former = plan.origin
    return Origin(
        run=name,
        folder=uri_or_path(folder.resolve()),
        at_task=number,
        score_again=score_again or scored < number,
        stream_name=plan.stream.name,
        stream_digest=plan.stream.digest,
        parts=_parts(plan.config.stream, former, tasks[:number]),
        identities=tuple(task.identity for task in plan.stream.tasks[:number]),
        template=plan.fitted.template,
        mlflow_run=_recorded_as(folder),
        earlier=() if former is None else (*former.earlier, (former.run, former.at_task)),
    )


def _require_scored(folder: Place, plan: Plan, number: int) -> None:
    """Raise `ConfigError` where a row before that of task `number` is missing: it was awaited when the run ended."""
    path = folder / MATRIX_FILE
    there = ScoreMatrix.read(path).after if path.is_file() else []
    first = [ZERO_SHOT] if plan.config.evaluation.zero_shot and plan.origin is None else []
    missing = next((name for name in (*first, *plan.stream.task_names[: number - 1]) if name not in there), None)
    if missing is not None:
        raise ConfigError(
            f"run {folder.name} ended before its row {missing} was scored; give its own command once more, which "
            "scores what is left, and then continue from it."
        )


def without_task(
    folder: Place, task: str, *, run_id: str | None, storage: Place, partial: bool
) -> tuple[RunConfig, Origin]:
    """The run that keeps what the run in `folder` has learned but for `task`, and scores its last row anew.

    Its stream has `task` behind the others: it is scored, and not learned. One that has begun is as it was then.
    Raises `ConfigError` where the method cannot part with the task or, unless `partial`, where others keep traces of
    it, and for a run id that is taken; `CheckpointError` where there is no checkpoint.
    """
    run_id = run_id or id_of(folder.name, "without", task)
    path = folder_at(uri_or_path(storage)) / run_id / CONFIG_FILE
    if path.is_file():
        known = read_origin(path.parent)
        if known is None or known.unlearned is None or (known.run, known.unlearned.task) != (folder.name, task):
            raise ConfigError(f"run {run_id} exists and is not run {folder.name} without {task}; use another --run-id.")
        content = read_object(path, ConfigError, ADVICE)
        with understood(path, ConfigError, ADVICE):
            return replace(RunConfig.from_json(content), run_id=run_id, storage=uri_or_path(storage)), known
    plan = _plan_of(folder)
    names = plan.stream.task_names[: plan.num_tasks]
    kept = [(folder / KEPT_CHECKPOINTS / f"{index:02d}-{name}") for index, name in enumerate(names, 1)]
    number = max((index for index, each in enumerate(kept, 1) if (each / STATE_FILE).is_file()), default=0)
    learned, method = names[:number], plan.config.method
    if number < learned_in(folder) or not number:
        raise CheckpointError(
            f"run {folder.name} has no checkpoint of its last learned task; nothing can be taken out."
        )
    try:
        traces = forget(read_checkpoint(kept[number - 1]), method, task, seed=plan.config.seed).traces
    except ConfigError as error:
        if task != learned[-1] or number == 1:
            raise
        before = f"--continue-from {folder.name} --at-task {number - 1}"
        raise ConfigError(
            f"{error} What there was before this last task, littoral coast {before} takes over."
        ) from error
    if traces and not partial:
        raise ConfigError(
            f"{method.name} can give up what task {task} owns, but {traces}; --partial unlearns it all the same, and "
            "the new run says what stays."
        )
    former, place, parts = plan.origin, learned.index(task), _parts(plan.config.stream, plan.origin, learned)
    rest = [replace(part, tasks=tuple(name for name in part.tasks if name != task)) for part in parts]
    origin = Origin(
        run=folder.name,
        folder=uri_or_path(folder.resolve()),
        at_task=number - 1,
        score_again=True,
        stream_name=plan.stream.name,
        stream_digest=plan.stream.digest,
        parts=tuple(part for part in rest if part.tasks),
        identities=tuple(each.identity for number, each in enumerate(plan.stream.tasks[:number]) if number != place),
        template=plan.fitted.template,
        mlflow_run=_recorded_as(folder),
        unlearned=Unlearned(
            task=task,
            checkpoint=kept[number - 1].name,
            digest=file_sha256(kept[number - 1] / STATE_FILE),
            learned=tuple(learned),
            traces=traces,
        ),
        earlier=() if former is None else (*former.earlier, (former.run, former.at_task)),
    )
    config = replace(plan.config, run_id=run_id, storage=uri_or_path(storage))
    home = next(part.stream for part in parts if task in part.tasks)
    # A budget for forgetting would roll back what was asked for.
    evaluation = replace(config.evaluation, max_forgetting=None)
    return replace(config, stream=replace(home, order=(task,)), evaluation=evaluation), origin


def _plan_of(folder: Place) -> Plan:
    """The other run's plan; raises `ConfigError` where its data are others by now."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"{folder} is not the folder of a run; give one of a run, STORAGE/RUN-ID.")
    content = read_object(path, ConfigError, ADVICE)
    with understood(path, ConfigError, ADVICE):
        config = RunConfig.from_json(content)
    planned = replace(config, run_id=folder.name, storage=uri_or_path(folder.resolve().parent))
    unrecorded = replace(config.tracking, enabled=False)  # where it was recorded may be no place for its storage of now
    try:
        plan = plan_stream(replace(planned, tracking=unrecorded))
    except LittoralError as error:
        raise ConfigError(f"run {folder.name} cannot be continued from: {error}") from error
    if plan.stream.mixture is not None:
        raise ConfigError(
            f"run {folder.name} learned a stream without boundaries between its tasks, so there is no task after which "
            "to continue, and none to take out; begin a new run."
        )
    if plan.stream.digest != content.get("stream_digest"):
        raise ConfigError(
            f"the data of {plan.stream.name} are not those that run {folder.name} learned; give back the data to "
            "continue from it."
        )
    return replace(plan, config=planned)


def _require_alike(name: str, other: Plan, config: RunConfig) -> None:
    """Raise `ConfigError` with every setting that must be as it was and is not."""
    free = EXECUTION.difference(config.method.result_depends_on)
    if not other.fitted.cut:  # else the limit decides what was learned, and not only which rows take part
        free |= {"backbone.max_length", "backbone.too_long"}
    before, now = _compared(other.config), _compared(config)
    if before["method.name"] != now["method.name"]:  # its options need not be listed then
        before, now = ({"method.name": one["method.name"]} for one in (before, now))
    different = sorted(
        option for option in before.keys() | now.keys() if before.get(option) != now.get(option) and option not in free
    )
    if different:
        said = ", ".join(f"{option} was {before.get(option)} and is {now.get(option)}" for option in different)
        raise ConfigError(
            f"run {name} cannot be continued from with other settings of what it learned with or was scored by: {said}."
        )


def _compared(config: RunConfig) -> dict[str, str]:
    plain, evaluation = config.to_json(), config.evaluation
    kept: dict[str, Json] = {
        "seed": config.seed,
        "backbone": plain["backbone"],
        "method": plain["method"],
        "evaluation": {"limit": evaluation.limit, "split": evaluation.split, "replies": evaluation.replies},
    }
    return flatten(kept)


def _parts(stream: StreamConfig, former: Origin | None, learned: list[str]) -> tuple[Part, ...]:
    """Where the learned tasks' data are: those of the other run, behind those that it had itself taken over."""
    parts, left = list[Part](), learned
    for part in () if former is None else former.parts:
        parts.append(replace(part, tasks=tuple(left[: len(part.tasks)])))
        left = left[len(part.tasks) :]
    parts.append(Part(stream=stream, tasks=tuple(left)))
    return tuple(part for part in parts if part.tasks)


def _recorded_as(folder: Place) -> str | None:
    path = folder / LINK_FILE
    found = read_object(path, ConfigError, "delete it to go on without it").get("run_id") if path.is_file() else None
    return found if isinstance(found, str) else None
