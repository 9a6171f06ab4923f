"""How far runs and sweeps are, from their folders alone: which have finished, run, were stopped or are dead.

Light on purpose (no torch, no ray, no mlflow): it reads JSON and looks at locks, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from components.core.errors import ConfigError
from components.core.location import Location, Place
from components.core.lock import LOCK_FILE, Holder, holder_of
from components.core.naming import is_mlflows
from components.core.reading import why
from components.core.run_files import (
    CONFIG_FILE,
    FINISHED_FILE,
    GATE_FILE,
    LINK_FILE,
    ORIGIN_FILE,
    SHARED_FOLDER,
    STATE_FILE,
    SWEEP_FILE,
    VERDICTS_FILE,
)
from components.evaluation.matrix import MATRIX_FILE, ScoreMatrix
from components.runs.activity import read_activity
from components.runs.continuing import Recorded, over_budget, recorded, sweep_to_continue, to_continue, tracking_of
from components.runs.folder_json import read_object, read_optional, text_of
from components.runs.provenance import MADE_WITH_FILE
from components.training.stopping import STOP_FILE
from components.training.stream_state import Checkpoints, Found, StreamState

DIGEST_UP_TO = 64_000_000  # bytes; of larger files, and of all in a store, the length is compared: a look must be quick
# unclear: its lock file names another host, and no lock is seen here. foreign: a folder that is no run.
State = Literal["finished", "running", "stopped", "rejected", "dead", "unclear", "damaged", "foreign"]


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run's newest checkpoint is, and where it goes on."""

    task: int  # from 1; one more than the stream has tasks when all are learned and scored
    name: str  # of the task; empty where it is not known
    update: int  # optimizer updates of this task that are kept
    updates: int | None  # that the task has in all; None: unknown, as for runs of an earlier version
    learned: bool  # the task is learned, and its row of scores is not there yet


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What a run's folder says. Only `path`, `state`, `problem` and `holder` are known of a damaged one."""

    kind: Literal["run"] = "run"
    path: Place
    state: State
    problem: str = ""  # what is damaged, or missing beside what could be read
    holder: Holder | None = None  # of the lock; of a dead run: the process that is gone
    stop_requested: bool = False
    doing: str = ""  # of a running one: `learning task 2 of 4 (iconqa), update 37 of 60`
    doing_since: datetime | None = None  # when it last said so
    moved: datetime | None = None  # when something in the folder last changed; of a finished run: when it ended
    method: str = ""
    stream: str = ""
    backbone: str = ""
    origin: str = ""  # of a run that continued from another one: `first after task 2`
    seed: int | None = None
    tasks: int | None = None  # of the stream; None where no file says it yet
    learned: int = 0  # tasks learned and scored
    rows: int = 0  # of the score matrix, with zero-shot
    position: Position | None = None  # None without a checkpoint
    figures: Mapping[str, float] = field(default_factory=dict[str, float])  # of the newest row, by canonical name
    mlflow: Recorded | None = None
    command: str = ""  # continues it; empty where it runs, or where a sweep continues it
    note: str = ""  # what that command needs beside itself


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """What a sweep's folder says."""

    kind: Literal["sweep"] = "sweep"
    path: Place
    state: State
    problem: str = ""
    holder: Holder | None = None
    moved: datetime | None = None
    method: str = ""
    stream: str = ""
    backbone: str = ""
    space: Mapping[str, str] = field(default_factory=dict[str, str])  # values by field
    trials: tuple[RunStatus, ...] = ()
    mlflow_run: str | None = None
    command: str = ""  # continues it; empty where it runs or has ended, and for sweeps of an earlier version
    note: str = ""  # how it is continued, or what that command needs beside itself


def read_storage(storage: Place) -> list[RunStatus | SweepStatus]:
    """Everything in a storage, newest movement first; a damaged folder is one of state "damaged". Folders of starts
    that ended before they wrote anything are left out.

    Raises `ConfigError` where the storage itself cannot be read.
    """
    try:
        folders = [path for path in storage.iterdir() if path.is_dir() and not _is_ours_or_mlflows(path.name)]
    except FileNotFoundError as error:
        raise ConfigError(
            f"there are no runs, and no folder {storage}; give the folder that holds them with --storage."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{storage} cannot be listed ({error.strerror or error}); look at it, or give another --storage."
        ) from error
    return sorted((each for each in map(read_status, folders) if not _never_began(each)), key=_newest_first)


def read_status(path: Place) -> RunStatus | SweepStatus:
    """The run or the sweep in the folder `path`; what cannot be read is in `state` and `problem`, nothing is raised."""
    holder: Holder | None = None
    try:
        holder = holder_of(path)
        if (path / SWEEP_FILE).is_file():
            return _sweep(path, holder)
        if (path / CONFIG_FILE).is_file():
            return _run(path, holder)
        if holder is not None and holder.holds:
            doing, since = read_activity(path, holder)
            return RunStatus(
                path=path,
                state="running",
                holder=holder,
                doing=doing,
                doing_since=since,
                moved=_moved(path),
                note="it has just begun",
            )
        return RunStatus(
            path=path, state="foreign", problem=f"no run: it has no {CONFIG_FILE} and no {SWEEP_FILE}", holder=holder
        )
    except OSError as error:
        problem = f"{Path(str(error.filename or path)).name} cannot be read ({error.strerror})"
    except ConfigError as error:
        problem = str(error)
    return RunStatus(path=path, state="damaged", problem=problem, holder=holder, moved=_moved(path))


def _never_began(found: RunStatus | SweepStatus) -> bool:
    """Whether nothing is there but a lock that nobody has. In S3 pyarrow leaves the empty folder of tickets."""
    if found.state != "foreign" or (found.holder is not None and found.holder.holds is not False):
        return False
    try:
        return [each.name for each in found.path.iterdir()] == [LOCK_FILE]
    except OSError:  # removed while we look
        return False


def progress(run: RunStatus) -> str:
    """`2 of 4 tasks; at task 3 (iconqa), update 30 of 60`."""
    whole = f"{run.learned} of {run.tasks or '?'} tasks"
    at = run.position
    if run.state == "finished" or at is None or (run.tasks is not None and at.task > run.tasks):
        return whole
    return f"{whole}; at {where(at)}"


def where(at: Position) -> str:
    """`task 3 (iconqa), update 30 of 60`."""
    task = f"task {at.task}{f' ({at.name})' if at.name else ''}"
    if at.learned:
        return f"{task}, learned and not scored yet"
    if not at.update:
        return task
    return f"{task}, update {at.update}{'' if at.updates is None else f' of {at.updates}'}"


def outlook(run: RunStatus) -> str:
    """What giving the run's id again does: `continues at task 3 (iconqa), update 30 of 60`."""
    if run.state == "finished":
        return "finished already; the same command prints its result"
    if run.state == "running" and run.holder is not None:
        return f"running already ({run.holder.name}); this command would be refused"
    if run.state == "unclear" and run.holder is not None:
        return f"{run.holder.name} may still run it, which cannot be seen from here"
    if run.state in ("damaged", "foreign"):
        return run.problem
    if run.position is None:
        return "begun already, without a checkpoint; starts again at task 1"
    if run.tasks is not None and run.position.task > run.tasks:
        return "begun already; all tasks are learned and scored, and it only has to end"
    return f"begun already; continues at {where(run.position)}"


def _run(path: Place, holder: Holder | None) -> RunStatus:
    """Raises `ConfigError` for a file that is damaged and without which nothing can be said."""
    config = read_object(path / CONFIG_FILE)
    problems: list[str] = []
    matrix = _matrix(path / MATRIX_FILE) if (path / MATRIX_FILE).is_file() else None
    ended = read_object(path / FINISHED_FILE) if (path / FINISHED_FILE).is_file() else None
    if ended is not None and matrix is None:
        raise ConfigError(f"{FINISHED_FILE} is there and {MATRIX_FILE} is missing")
    budget = read_optional(path / MADE_WITH_FILE, problems).get("budget", {})
    updates = budget.get("updates") if isinstance(budget, dict) else None
    updates = updates if isinstance(updates, dict) else {}
    checkpoint = None if ended is not None else _newest_checkpoint(path, problems)
    listed = None if checkpoint is None else checkpoint.state.get("tasks")
    told = listed if isinstance(listed, list) and listed else updates
    names = matrix.steps if matrix is not None else [*map(str, told)]
    stop = (path / STOP_FILE).exists()
    verdicts = read_optional(path / VERDICTS_FILE, problems)
    over = over_budget(verdicts, names[: 0 if matrix is None else matrix.num_learned])
    state = "finished" if ended is not None else _unfinished(holder, stopped=stop or bool(over))
    if state in ("stopped", "finished") and read_optional(path / GATE_FILE, problems).get("gate") == "rejected":
        state = "rejected"
    link = read_optional(path / LINK_FILE, problems)
    origin = read_optional(path / ORIGIN_FILE, problems)
    # Behind the tasks of a run that unlearned one stands that one, which is scored and not learned.
    num_tasks = max(0, len(names) - isinstance(origin.get("unlearned"), dict))
    doing, since = read_activity(path, holder)
    run = RunStatus(
        path=path,
        state=state,
        holder=holder,
        stop_requested=stop,
        doing=doing,
        doing_since=since,
        moved=_time(ended) if ended is not None else _moved(path),
        method=text_of(config, "method", "name"),
        stream=str(config.get("stream_name") or text_of(config, "stream", "name")),
        backbone=text_of(config, "backbone", "name"),
        origin=_origin(origin),
        seed=config["seed"] if isinstance(config.get("seed"), int) else None,
        tasks=num_tasks or None,
        learned=0 if matrix is None else matrix.num_learned,
        rows=0 if matrix is None else len(matrix.rows),
        position=None if checkpoint is None else _position(checkpoint.at, names, updates),
        figures={} if matrix is None else matrix.summary(),
    )
    try:
        tracking = tracking_of(config)
        run = replace(run, mlflow=recorded(path, link, tracking))
        command, note = ("", "") if state in ("finished", "running") else to_continue(path, config, link, tracking)
    except ConfigError as error:
        problems.append(str(error))
        command, note = "", ""
    above = path.parent if isinstance(path, Location) else path.absolute().parent
    if command and (above / SWEEP_FILE).is_file():
        command, note = "", f"a trial: sweep {above.name} continues it"
    note = "; ".join(filter(None, (over, note)))
    return replace(run, problem="; ".join(problems), command=command, note=note)


def _sweep(path: Place, holder: Holder | None) -> SweepStatus:
    content = read_object(path / SWEEP_FILE)
    identity = content.get("sweep")
    if not isinstance(identity, dict) or not isinstance(identity.get("run"), dict):
        raise ConfigError(f"{SWEEP_FILE} does not say which sweep it is of")
    base, listed = identity["run"], content.get("trials")
    listed = listed if isinstance(listed, list) else []
    reasons = {each.get("name"): each.get("reason") for each in listed if isinstance(each, dict)}
    folders = [each for each in path.iterdir() if each.is_dir() and each.name != SHARED_FOLDER]
    read = [read_status(each) for each in folders if not _is_ours_or_mlflows(each.name)]
    trials = sorted((each for each in read if isinstance(each, RunStatus)), key=lambda each: each.path.name)
    varied = space if isinstance(space := identity.get("space"), dict) else {}
    methods = dict.fromkeys(each.method for each in trials if each.method and "method" in varied)
    streams = dict.fromkeys(each.stream for each in trials if each.stream)
    # Its record names trials once it has ended, in whatever way they did.
    state = "finished" if listed and not (holder and holder.holds) else _unfinished(holder, stopped=False)
    link = content.get("mlflow_run")
    command, note = sweep_to_continue(path, content.get("given"), link) if state in ("dead", "unclear") else ("", "")
    return SweepStatus(
        path=path,
        state=state,
        holder=holder,
        moved=max((each.moved for each in trials if each.moved), default=_moved(path)),
        method=", ".join(methods) or text_of(base, "method", "name"),
        stream=", ".join(streams) or text_of(base, "stream", "name"),
        backbone=text_of(base, "backbone", "name"),
        space={str(name): str(values) for name, values in varied.items()},
        trials=tuple(
            replace(each, command="", note="", problem=each.problem or str(reasons.get(each.path.name) or ""))
            for each in trials
        ),
        mlflow_run=link if isinstance(link, str) else None,
        command=command,
        note=note,
    )


def _unfinished(holder: Holder | None, *, stopped: bool) -> State:
    if holder is not None and holder.holds is not False:
        return "running" if holder.holds else "unclear"
    return "stopped" if stopped else "dead"


def _newest_checkpoint(path: Place, problems: list[str]) -> Found | None:
    """What the run continues from; of each checkpoint that is damaged, what is wrong goes to `problems`."""

    def note(folder: Place, error: Exception) -> None:
        if not (folder / STATE_FILE).exists():
            return  # Ray Train has removed it meanwhile
        said = why(error).replace(f"{folder}/", "").replace(f"{path}/", "").partition(";")[0]
        problems.append(f"{str(folder).removeprefix(f'{path}/')}: {said}")

    return Checkpoints(path, note, digest_up_to=0 if isinstance(path, Location) else DIGEST_UP_TO).newest()


def _origin(content: dict[str, Any]) -> str:
    """`first after task 2`, `first without task iconqa`; empty for a run that began as usual."""
    run, at_task, unlearned = content.get("run"), content.get("at_task"), content.get("unlearned")
    if isinstance(run, str) and isinstance(unlearned, dict):
        return f"{run} without task {unlearned.get('task')}"
    return f"{run} after task {at_task}" if isinstance(run, str) and isinstance(at_task, int) else ""


def _position(at: StreamState, names: list[str], updates: dict[str, Any]) -> Position:
    name = names[at.index] if at.index < len(names) else ""
    of = updates.get(name)
    return Position(
        task=at.index + 1, name=name, update=at.update, updates=of if isinstance(of, int) else None, learned=at.learned
    )


def _matrix(path: Place) -> ScoreMatrix:
    content = read_object(path)
    try:
        return ScoreMatrix.from_dict(content)
    except (ValueError, TypeError, OverflowError) as error:  # a `MatrixError`, or a cell that is no number
        raise ConfigError(f"{path.name} is damaged ({' '.join(str(error).split())})") from error


def _time(ended: dict[str, Any]) -> datetime:
    try:
        return datetime.fromisoformat(str(ended.get("finished"))).astimezone()
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{FINISHED_FILE} is damaged (it says no time)") from error


def _moved(path: Place) -> datetime | None:
    """When the folder, or a file or folder in it, was last written; None where that cannot be read."""
    times = [*_written(path)]
    try:
        return datetime.fromtimestamp(max(times)).astimezone() if times else None
    except (ValueError, OverflowError, OSError):  # a clock that was wrong by millennia
        return None


def _written(path: Place) -> Iterator[float]:
    try:
        if isinstance(path, Location):  # as a rule one request tells all; tickets are in a folder of their own
            return (yield from filter(None, (each.st_mtime for each in path.facts_inside())))
        yield path.stat().st_mtime
        for each in path.iterdir():
            if each.name != LOCK_FILE:  # touched all the time
                yield each.lstat().st_mtime
    except OSError:
        return  # removed while we look, or not ours to read


def _is_ours_or_mlflows(name: str) -> bool:
    return name.startswith(".") or is_mlflows(name)


def _newest_first(each: RunStatus | SweepStatus) -> tuple[float, str]:
    return (-each.moved.timestamp() if each.moved else 0.0, each.path.name)
