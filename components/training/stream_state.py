"""How far a run's checkpoint is, and which checkpoint it continues from. Light on purpose (no torch, no ray)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from components.core.checkpoint_files import ADVICE, checked
from components.core.errors import CheckpointError
from components.core.location import Place
from components.core.options import CountOrZero, from_plain
from components.core.reading import read_object, understood
from components.core.run_files import KEPT_CHECKPOINTS, SNAPSHOTS, STATE_FILE
from components.evaluation.matrix_rows import MatrixRow

if TYPE_CHECKING:  # imports torch
    from components.core.checkpoint import Checkpoint


@dataclass(kw_only=True)
class StreamState:
    """How far the stream is. `update` counts the optimizer updates of the task at `index`."""

    index: CountOrZero = 0
    update: CountOrZero = 0
    learned: bool = False  # the task at `index` is trained and consolidated; its row is not scored yet
    skipped: int = 0  # of these updates, those whose loss or gradient was not finite
    rows: list[MatrixRow] = field(default_factory=list)
    awaited: CountOrZero = 0  # of the rows after none to `index` tasks, the last ones, which are scored beside training

    def to_json(self) -> dict[str, object]:
        """As a checkpoint keeps it."""
        return {**vars(self), "rows": [vars(row) for row in self.rows]}

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> StreamState:
        """That of a checkpoint in memory."""
        return cls.read(checkpoint.state, checkpoint.folder)

    @classmethod
    def read(cls, state: Mapping[str, Any], folder: Place | None) -> StreamState:
        """The inverse of `to_json`, from the `state.json` in `folder`; raises `CheckpointError`."""
        stored = state.get("stream_state", state.get("cursor"))  # "cursor": before 0.2
        if not isinstance(stored, dict):
            raise CheckpointError(f"{folder} has no stream state; it is damaged, {ADVICE}.")
        with understood(folder or "the checkpoint", CheckpointError, ADVICE):
            rows = [MatrixRow.stored(row) for row in stored["rows"]]
            position = {name: value for name, value in stored.items() if name != "rows"}
            return replace(from_plain(cls, position, "stream_state"), rows=rows)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A checkpoint's folder and how far it is, by its `state.json` alone."""

    folder: Place
    state: Mapping[str, Any]
    at: StreamState

    @property
    def order(self) -> tuple[int, bool, int, int, str]:
        """Later in the stream is larger."""
        return self.at.index, self.at.learned, self.at.update, len(self.at.rows), self.folder.name


class Checkpoints:
    """The checkpoints in a run's folder, furthest in the stream first.

    `note` hears of each that is damaged. Files over `digest_up_to` bytes are checked by their length alone.
    """

    def __init__(
        self, run_dir: Place, note: Callable[[Place, Exception], None], *, digest_up_to: float = float("inf")
    ) -> None:
        self._run_dir, self._note, self._digest_up_to = run_dir, note, digest_up_to
        self._seen: dict[Place, str] = {}  # of files that several checkpoints take from: what is wrong with each

    def snapshots(self) -> list[Found]:
        """Those of Ray Train's whose `state.json` can be read, whatever its list says."""
        return self._read(self._run_dir.glob(SNAPSHOTS))

    def kept(self) -> list[Found]:
        """The same of learned tasks; in a run that continues from another one, also what it began with."""
        return self._read(self._run_dir.glob(f"{KEPT_CHECKPOINTS}/[!.]*"))

    def whole(self, found: Iterable[Found]) -> Iterator[Found]:
        """The whole ones among `found`; each is checked when it is asked for."""
        for each in found:
            try:
                checked(each.folder, run_dir=self._run_dir, digest_up_to=self._digest_up_to, seen=self._seen)
            except (CheckpointError, OSError) as error:
                self._note(each.folder, error)
            else:
                yield each

    def newest(self) -> Found | None:
        """What a run continues from; None: from its beginning."""
        return next(self.whole(self.snapshots()), None) or next(self.whole(self.kept()), None)

    def _read(self, folders: Iterable[Place]) -> list[Found]:
        found: list[Found] = []
        for folder in folders:
            if not (folder / STATE_FILE).exists():
                continue  # its copy was never finished
            try:
                state = read_object(folder / STATE_FILE, CheckpointError, ADVICE)
                found.append(Found(folder=folder, state=state, at=StreamState.read(state, folder)))
            except (CheckpointError, OSError) as error:
                self._note(folder, error)
        return sorted(found, key=lambda each: each.order, reverse=True)
