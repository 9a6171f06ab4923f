"""What became of a run whose processes died: which deaths are worth another try, and the sentence that users read.

Light on purpose: Ray Train's controller imports it (see training/pickled.py).
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ray.exceptions import (
    ActorDiedError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    UnserializableException,
)
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.queue import Queue

from components.core.errors import ConfigError, LittoralError, LostError, StorageError, TrainingError
from components.core.events import Note
from components.core.files import write_bytes
from components.core.location import Location, Place
from components.core.secrets import without_secrets
from components.training.watchdog import hung

FAILURE_FILE = "failure.txt"  # of a run's folder: the last failure in full
SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"  # Ray Train writes it anew for every checkpoint
LOCAL_WORKER = "LocalWorker"  # the class of training/local_worker.py, as Ray names it
PLACE_WAITS = 14  # that Ray Train asks again for a place of the workers, for a minute each
LESS_MEMORY = "lower training.micro-batch-size, evaluation.batch-size or cluster.num-workers"
_USED = re.compile(r"was ([\d.]+) ?GB used / ([\d.]+) ?GB limit")
_PLACE = re.compile(r"\tpid: (\d+)(?:.*?)\tip: (\S+)", re.DOTALL)
_NO_MODULE = re.compile(r"No module named '([\w.]+)'")
_SOURCE = re.compile(r"^\[\S+:\d+\] ")  # of gloo's, where in its code it was raised
# What gloo, NCCL and torch's store say then.
_PEER_LOST = re.compile(
    "connection (was )?(closed by peer|reset by peer|refused)|remote process exited|NCCL communicator was aborted|"
    "socket (timeout|closed)|broken pipe",
    re.IGNORECASE,
)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it came from, the failures of a worker group and of Ray Train's health checks included."""
    seen: set[int] = set()
    due = [error]
    while due:
        each = due.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        due += getattr(each, "worker_failures", {}).values()
        names = ("controller_failure", "health_check_failure", "cause", "__cause__", "__context__")
        below = next((found for name in names if isinstance(found := getattr(each, name, None), BaseException)), None)
        due.append(below)


def user_error(error: BaseException | None) -> LittoralError | None:
    """The first `LittoralError` in an exception's chain of causes."""
    return next((each for each in chain(error) if isinstance(each, LittoralError)), None)


def is_lost(error: BaseException) -> bool:
    """Whether processes were lost, rather than that code raised an exception: the same again may then go well."""
    causes = list(chain(error))
    own = any(isinstance(each, LittoralError) for each in causes) or missing_package(error) is not None
    return not own and any(_is_death(each) or _tells_of_death(each) for each in causes)


def missing_package(error: BaseException) -> str | None:
    """The Python package that a process could not import; None where that was not the trouble.

    Ray raises an exception of its own where a process cannot even read what it is to do.
    """
    for each in chain(error):
        if isinstance(each, ModuleNotFoundError):
            return each.name or str(each)
        if isinstance(each, RayError) and (found := _NO_MODULE.search(str(each))) is not None:
            return found[1]
    return None


def _is_death(error: BaseException) -> bool:
    if isinstance(error, RayTaskError):  # an exception of the code in a task; its cause comes later in the chain
        return False
    if isinstance(error, UnserializableException) or type(error) is RayError:  # one that could not travel, as text
        return False
    if isinstance(error, ActorDiedError) and error.actor_init_failed:
        return False
    return isinstance(
        error,
        RayError | WorkerHealthCheckFailedError | WorkerHealthCheckTimeoutError | WorkerGroupStartupFailedError,
    )


def _tells_of_death(error: BaseException) -> bool:
    """Whether a worker's collective failed because another worker is gone."""
    return isinstance(error, RuntimeError | OSError) and _PEER_LOST.search(str(error)) is not None


class Tries:
    """How often a run may go on after lost processes; counted anew once it has written a checkpoint in between."""

    def __init__(self, run_dir: Place, limit: int) -> None:
        self.run_dir = run_dir
        self._snapshot, self.limit = run_dir / SNAPSHOT_FILE, limit
        self.used, self._progress = 0, self._written()

    def another(self) -> bool:
        """Take one more try; False when there is none left."""
        if (progress := self._written()) not in (None, self._progress):
            self.used, self._progress = 0, progress
        self.used += 1
        return self.used <= self.limit

    def _written(self) -> bytes | None:
        try:
            return self._snapshot.read_bytes()  # a store's times are too coarse
        except OSError:
            return None


class RetryLost(DefaultFailurePolicy):
    """Ray Train's failure policy, but for three things: an exception of the code ends the run at once, because it would
    come again; lost processes are counted anew after a checkpoint; and a place for the workers is waited for as long as
    another machine takes to come.
    """

    def __init__(self, config: FailureConfig, tries: Tries, tell: Callable[[str], None]) -> None:
        super().__init__(config)
        self._tries, self._tell, self._waits = tries, tell, 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if _found_no_place(training_failed_error) and self._waits < PLACE_WAITS:
            self._waits += 1
            self._tell(f"the cluster has no place for the workers yet; waiting for one (minute {self._waits + 1})")
            return FailureDecision.RETRY
        if not isinstance(training_failed_error, WorkerGroupError):
            return super().make_decision(training_failed_error)
        self._waits = 0
        if not is_lost(training_failed_error) or not self._tries.another():
            return FailureDecision.RAISE
        self._tell(going_on(training_failed_error, self._tries))
        return FailureDecision.RETRY


def _found_no_place(error: TrainingFailedError) -> bool:
    return isinstance(error, ControllerError) and isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)


class TellUsers:
    """Puts a note into the workers' queue, from Ray Train's controller, which may not wait for it."""

    def __init__(self, event_queue: Queue) -> None:
        self._actor: Any = event_queue.actor

    def __call__(self, text: str) -> None:
        self._actor.put.remote(Note(text=text), None)


def going_on(error: BaseException, tries: Tries) -> str:
    """What a user reads before a run goes on by itself."""
    return (
        f"{what_happened(error, tries.run_dir)}; going on from the last checkpoint (try {tries.used} of {tries.limit})"
    )


def what_happened(error: BaseException, run_dir: Place) -> str:
    """A clause without a full stop: which process was lost, where, and why as far as Ray knows it."""
    if hang := hung(run_dir):
        return hang
    causes = list(chain(error))
    failures = getattr(error, "worker_failures", {}).items()
    ranks = [f"rank {rank}" for rank, failure in failures if any(map(_is_death, chain(failure)))]
    who = f"a worker process ({', '.join(ranks)})" if ranks else "a process of the run"
    if not failures and "TrainController" in str(error):
        who = "Ray Train's controller process"
    if LOCAL_WORKER in str(error):
        who = "the worker process"
    for each in causes:
        if isinstance(each, OutOfMemoryError):
            used = _USED.search(str(each))
            amount = f" ({used[1]} of {used[2]} GB were used)" if used else ""
            return f"Ray ended {who}, because the machine ran out of memory{amount}"
        if isinstance(each, WorkerHealthCheckTimeoutError):
            return f"{who} did not answer any more"
        if isinstance(each, NodeDiedError) or (isinstance(each, ActorDiedError) and _of_node(str(each))):
            return f"a node with {who} was lost"
        if isinstance(each, LocalRayletDiedError):
            return "Ray's node process (raylet) was lost"
        if isinstance(each, ActorDiedError):
            place = _PLACE.search(str(each))
            where = f", process {place[1]} on {place[2]}," if place else ""
            return f"{who}{where} was lost: something killed it (the system does so when memory runs out) or it crashed"
        if isinstance(each, WorkerGroupStartupFailedError | WorkerGroupStartupTimeoutError):
            return "the workers could not be started on the cluster"
    return f"{who} was lost ({_line(causes[-1])})"


def _of_node(text: str) -> bool:
    return (
        re.search(r"node (has )?(died|crashed|terminated|was lost)|its node|marked dead", text, re.IGNORECASE)
        is not None
    )


def explained(error: BaseException, run_dir: Place, *, logs: Path | None, trial: bool = False) -> LittoralError:
    """One sentence for what ended a run; all that is known goes into `FAILURE_FILE` of its folder.

    `logs`: where Ray writes its own. `trial`: it is a sweep's, whose command has no run id.
    """
    own = user_error(error)
    again = f"the same command{'' if trial else f' with --run-id {run_dir.name}'} goes on from the last checkpoint."
    if isinstance(own, StorageError) and isinstance(run_dir, Location):
        trouble = StorageError(f"{str(own).partition('; ')[0]}; once that is mended, {again}")
        trouble.errno, trouble.strerror = own.errno, own.strerror
        return trouble
    if own is not None and not isinstance(own, LostError):
        return own
    kept = _kept(error, run_dir, logs)
    if own is not None:
        return LostError(f"{own}; {again}")
    package = missing_package(error)
    if package is not None:
        return ConfigError(
            f"a node of the run cannot import the Python package {package!r}: it has another image or environment; "
            f"give all nodes the same one, with all that Littoral needs{kept}; then {again}"
        )
    causes = list(chain(error))
    # torch.OutOfMemoryError is a RuntimeError; torch is not imported here.
    device = next((each for each in causes if isinstance(each, RuntimeError) and "out of memory" in str(each)), None)
    if device is not None or any(isinstance(each, MemoryError) for each in causes):
        said = "" if device is None else f" ({_line(device)})"
        return TrainingError(f"a worker ran out of memory{said}; {LESS_MEMORY}{kept}; then {again}")
    if is_lost(error) or any(isinstance(each, WorkerGroupStartupTimeoutError) for each in causes):
        memory = "" if not any(isinstance(each, OutOfMemoryError) for each in causes) else f"; {LESS_MEMORY}"
        return LostError(f"{what_happened(error, run_dir)}{memory}{kept}; {again}")
    cause = next((each for each in causes if not isinstance(each, TrainingFailedError | RayError)), causes[-1])
    return TrainingError(f"a process of the run failed with {type(cause).__name__} ({_line(cause)}){kept}; {again}")


def _line(error: BaseException) -> str:
    """The line of an exception's text that says most: the first one, or the last one of a traceback in it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["it says no more"]
    whole = "Traceback (most recent call last)" in str(error) or isinstance(error, UnserializableException)
    chosen = lines[-1 if whole else 0]
    return _SOURCE.sub("", chosen)[:200].rstrip(". ")


def _kept(error: BaseException, run_dir: Place, logs: Path | None) -> str:
    """Write all that is known; says where, for a sentence. Where it cannot be written, the sentence goes without."""
    text = "".join(traceback.format_exception(error))
    # What the workers added in train_stream_per_worker, where the exception is only named by another one.
    notes = [note for each in chain(error) for note in getattr(each, "__notes__", ()) if note not in text]
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    try:
        told = without_secrets("\n".join([now, f"Ray's logs: {logs}", text, *notes]))
        if isinstance(run_dir, Path):  # a folder that is gone is not made again
            (run_dir / FAILURE_FILE).write_text(told, encoding="utf-8", errors="replace")
        else:
            write_bytes(run_dir / FAILURE_FILE, told.encode(errors="replace"))
    except OSError:
        return "" if logs is None else f"; Ray's logs are in {logs}"
    return f"; details are in {run_dir / FAILURE_FILE}"
