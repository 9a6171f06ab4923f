"""Which checkpoint a run continues from: the newest whole one, whatever happened to the others or to Ray Train's list.

Ray Train continues from the checkpoint that its list names last, and refuses to start when the list is torn or names a
folder that is gone. So the driver looks first: it checks the files of the newest checkpoint, goes back to an older one
where it must, at last to that of the last learned task, and writes the list anew. Newest is the one furthest in the
stream: a clock may have jumped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)

from components.core.errors import CheckpointError
from components.core.events import EventHandler, Note
from components.core.files import remove_folder, whole_folder, write_text
from components.core.location import Place
from components.core.reading import ODD, read_object, why
from components.core.run_files import SNAPSHOT_LIST, SNAPSHOTS, STATE_FILE, TENSORS
from components.training.checkpointing import copy_files
from components.training.plan import Plan
from components.training.stream_state import Checkpoints, Found, StreamState


def restore(plan: Plan, handle: EventHandler) -> StreamState | None:
    """Let Ray Train continue from the newest whole checkpoint and return its state; None for a run that has none.

    What was damaged, and what it costs, goes to `handle` in one sentence. Call it while nobody else uses the folder.
    """
    search = _Search(plan)
    listed = search.listed()
    whole = search.whole_snapshots()
    newest = next(whole, None)
    source = newest.folder if newest else None
    if newest is None:
        # Also the start of a run that continues from another one: its checkpoint lies where those of learned tasks do.
        kept = search.newest_kept()
        if kept is not None:
            source, newest = kept.folder, _as_snapshot(plan, kept)
    if newest is None or source is None:
        search.begin_again(handle)
        return None
    if [*listed][-1:] != [newest.folder.name] or not all((plan.run_dir / name).is_dir() for name in listed):
        older = next(whole, None)
        kept = [*([older] if older else []), newest]
        write_list(
            plan.run_dir, [Listed(folder=each.folder.name, task=each.at.index, update=each.at.update) for each in kept]
        )
    search.remove_others()  # also what a process was killed over that had just listed a newer one
    again = max(0, search.reached - _updates(plan, newest.at))
    if search.damaged or again:
        lost = f"{again} update{'s are' if again > 1 else ' is'} made again" if again else "no update is lost"
        handle(Note(text=f"{search.told()}; the run continues from {source.name}, and {lost}", warning=True))
    return newest.at


def newest_whole(plan: Plan) -> StreamState | None:
    """The state of the newest whole checkpoint of Ray Train's; nothing is told or written."""
    found = next(_Search(plan).whole_snapshots(), None)
    return None if found is None else found.at


class _Search:
    """A look through a run's checkpoints that notes what is damaged."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.run_dir = plan, plan.run_dir
        self.checkpoints = Checkpoints(plan.run_dir, self._note)
        self.damaged: dict[Place, str] = {}  # file or folder -> what is wrong with it
        self.unread: set[Place] = set()  # of these, which may be whole: the storage would not let them be read
        self.reached = 0  # updates of the stream, as far as anything says

    def listed(self) -> dict[str, StreamState]:
        """What Ray Train's list names, in its order; empty for a list that is missing or damaged."""
        path = self.run_dir / SNAPSHOT_LIST
        if not path.is_file():
            return {}
        try:
            known = _CheckpointManagerState.parse_obj(read_object(path, CheckpointError, "it is written anew"))
            found: dict[str, StreamState] = {}
            for each in known.checkpoint_results:
                at = StreamState(index=each.metrics["task"], update=each.metrics["update"])
                found[each.checkpoint_dir_name] = at
                self.reached = max(self.reached, _updates(self.plan, at))
                if not (self.run_dir / each.checkpoint_dir_name / STATE_FILE).exists():
                    self.damaged[self.run_dir / each.checkpoint_dir_name] = "is missing or has no state.json"
            latest = known.latest_checkpoint_result
            if latest is not None and [*found][-1:] != [latest.checkpoint_dir_name]:
                raise ValueError("its last checkpoint is not the latest one")
            return found
        except (CheckpointError, *ODD) as error:
            self.damaged[path] = f"cannot be read ({why(error.__cause__ or error)})"
            return {}

    def whole_snapshots(self) -> Iterator[Found]:
        """Whole checkpoints of Ray Train's, listed or not, newest first; each is checked when it is asked for."""
        return self.checkpoints.whole(self._reached(self.checkpoints.snapshots()))

    def newest_kept(self) -> Found | None:
        """The whole checkpoint of the task learned last."""
        return next(self.checkpoints.whole(self._reached(self.checkpoints.kept())), None)

    def begin_again(self, handle: EventHandler) -> None:
        """Nothing is whole: the run starts anew, and says so where it had begun.

        Raises `CheckpointError` where a checkpoint may be whole, and where the run began with what another one learned.
        """
        if self.unread:
            raise CheckpointError(
                f"{self.told()}, and no other checkpoint of the run is whole; make the storage readable and give the "
                "same command again, or use another --run-id."
            )
        if self.plan.origin is not None:
            start = self.plan.origin.checkpoint_in(self.run_dir)
            self.damaged.setdefault(start, "is gone")
            raise CheckpointError(
                f"{self.told()}, and no other checkpoint of the run is whole; restore {start} and "
                f"{self.run_dir / TENSORS} from a copy, or give the same command with another --run-id."
            )
        (self.run_dir / SNAPSHOT_LIST).unlink(missing_ok=True)
        if self.damaged:
            handle(Note(text=f"{self.told()}; nothing else is left, and the run begins again at task 1", warning=True))

    def remove_others(self) -> None:
        """Remove what Ray Train will never come back to, but nothing that may be whole."""
        listed = {each.folder for each in read_list(self.run_dir)}
        for folder in self.run_dir.glob(SNAPSHOTS):
            if folder.is_dir() and folder not in self.unread and folder.name not in listed:
                remove_folder(folder, STATE_FILE)

    def told(self) -> str:
        """What is damaged, the newest checkpoint first and the list last."""
        if not self.damaged:
            return f"the newest checkpoint of run {self.run_dir.name} is gone"
        (path, wrong), *others = sorted(self.damaged.items(), key=lambda each: each[0].name == SNAPSHOT_LIST)
        more = f" (and {len(others)} more)" if others else ""
        return f"{str(path).removeprefix(f'{self.run_dir}/')} of run {self.run_dir.name} {wrong}{more}"

    def _reached(self, found: list[Found]) -> list[Found]:
        self.reached = max([self.reached, *(_updates(self.plan, each.at) for each in found)])
        return found

    def _note(self, folder: Place, error: Exception) -> None:
        cause = error.__cause__ or error
        if isinstance(cause, OSError):
            self.unread.add(folder)
        self.damaged.setdefault(folder, f"is damaged ({_short(error, folder, self.run_dir)})")


def _short(error: Exception, *folders: Place) -> str:
    """What an error says, without the folders that the reader knows and without its advice."""
    said = why(error).partition(";")[0]
    for folder in folders:
        said = said.replace(f"{folder}/", "")
    return said


def _updates(plan: Plan, at: StreamState) -> int:
    """Optimizer updates of the stream up to there."""
    before = sum(each.num_updates for each in plan.schedule[: at.index])
    inside = plan.schedule[at.index].num_updates if at.learned and at.index < len(plan.schedule) else at.update
    return before + inside


def _as_snapshot(plan: Plan, kept: Found) -> Found:
    """A copy of a learned task's checkpoint that Ray Train can continue from."""
    folder = plan.run_dir / f"checkpoint_{datetime.now():%Y-%m-%d_%H-%M-%S.%f}"
    with whole_folder(folder, durable=True, last=STATE_FILE) as partial:
        copy_files(kept.folder, partial)
    return replace(kept, folder=folder)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A checkpoint in Ray Train's list."""

    folder: str
    task: int  # number of learned tasks before it
    update: int  # of the task after these


def write_list(run_dir: Place, checkpoints: Sequence[Listed]) -> None:
    """Ray Train's list with these checkpoints, the newest last; it is there as a whole or not at all."""
    results = [
        _TrainingResultState(checkpoint_dir_name=each.folder, metrics={"task": each.task, "update": each.update})
        for each in checkpoints
    ]
    content = _CheckpointManagerState(
        checkpoint_results=results,
        checkpoint_report_indices=[*range(len(results))],
        latest_checkpoint_result=results[-1],
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(results),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    write_text(run_dir / SNAPSHOT_LIST, content.json())


def read_list(run_dir: Place) -> list[Listed]:
    """What Ray Train's list names, the newest last; nothing where there is none. `restore` has seen to its damage."""
    path = run_dir / SNAPSHOT_LIST
    if not path.is_file():
        return []
    content = _CheckpointManagerState.parse_raw(path.read_bytes())
    return [
        Listed(folder=each.checkpoint_dir_name, task=each.metrics["task"], update=each.metrics["update"])
        for each in content.checkpoint_results
    ]
