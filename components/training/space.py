"""The room that a run takes in its storage, known before any process starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.core.errors import StorageError
from components.core.files import free_bytes, size
from components.core.location import Location, Place
from components.training.mending import expected_rows
from components.training.needs import Needs
from components.training.plan import Plan
from components.training.vision_cache import feature_root

NUMBER = 4  # bytes of a trained number, and of each of Adam's two moments: float32
AT_ONCE = 3  # checkpoints inside a task: Ray Train keeps two, and makes the next before it removes one
# Seen on recorded runs, rounded up: a reply with its prompt, scores and Parquet's share; an update's figures in MLflow
# and in the queue for it; a new MLflow database.
REPLY, UPDATE, DATABASE = 400, 1500, 1_200_000

_FULL = re.compile(r"\[Errno (28|122|30)\]|No space left on device|Disk quota exceeded|Read-only file system")


@dataclass(frozen=True, kw_only=True)
class Space:
    """Bytes by what they are for, of a whole run; `features` may lie on another file system."""

    parts: Mapping[str, int]
    features: int
    there: int  # bytes that the run's folder has already
    free: int | None  # None: nobody knows
    known: bool  # False where the method cannot be counted before it runs: checkpoints are then left out

    @property
    def needed(self) -> int:
        """Bytes that are still to be written into the storage."""
        return max(0, sum(self.parts.values()) - self.there)

    def described(self) -> str:
        """The fact for the plan."""
        parts = ", ".join(f"{name} {size(number)}" for name, number in self.parts.items())
        if not self.known:
            parts += "; its checkpoints are not known before the method reads weights"
        there = f", {size(self.there)} of it is there" if self.there else ""
        free = "" if self.free is None else f"; {size(self.free)} free"
        return f"about {size(sum(self.parts.values()))} ({parts}){there}{free}"


def space_of(plan: Plan, needs: Needs) -> Space:
    """Count what the run writes; an estimate that is rather too large."""
    method, updates = needs.counted.method, sum(each.num_updates for each in plan.schedule)
    learned = sum(1 for each in plan.schedule if each.scored)
    parts: dict[str, int] = {}
    if method is not None:
        trained = sum(method.trainable)
        # Each task writes what it has changed, once; before the first, there is the method as it begins.
        kept = trained + learned * max(trained, method.growth)
        parts["checkpoints"] = NUMBER * (kept + AT_ONCE * 3 * trained)  # inside a task: values and two moments
    replies = sum(sum(row.due.values()) for row in expected_rows(plan))
    passes = learned + 1 if plan.config.evaluation.suites_after_every_task else 2
    replies += passes * sum(suite.test.num_rows for suite in plan.suites)
    parts["predictions"] = REPLY * replies
    if plan.config.tracking.enabled:
        parts["MLflow"] = DATABASE + UPDATE * updates
    root = feature_root(plan.run_dir.parent)
    features = needs.features.size if needs.features.fits else 0
    if features and _device(root) == _device(plan.run_dir):
        parts["vision features"] = features
    return Space(
        parts=parts,
        features=features,
        there=_there(plan.run_dir),
        free=free_bytes(plan.run_dir) if isinstance(plan.run_dir, Path) else None,
        known=method is not None,
    )


def require_space(plan: Plan, needs: Needs) -> None:
    """Raise `StorageError` where the storage has too little room for what is certain: checkpoints and predictions."""
    space = space_of(plan, needs)
    certain = max(0, space.parts.get("checkpoints", 0) + space.parts["predictions"] - space.there)
    if space.free is not None and space.free < certain:
        raise StorageError(
            f"this run needs about {size(certain)} more in {plan.run_dir.parent}, where {size(space.free)} are free; "
            "make room there, or choose another --storage."
        )


def close_to_full(space: Space) -> str | None:
    """A warning where all that the run may write is more than there is room for."""
    if space.free is None or space.free >= space.needed:
        return None
    needed, free = size(space.needed), size(space.free)
    return f"the run may take {needed} more in its storage, and {free} are free: it may just not fit"


@contextmanager
def saying_what_is_needed(plan: Plan, needs: Needs) -> Iterator[None]:
    """Add to a `StorageError` how much the run still needs; one of Ray's about the storage becomes one, too.

    Not of a store: there is room in it, or its own words say what is wrong.
    """
    if isinstance(plan.run_dir, Location):
        yield
        return
    try:
        yield
    except Exception as error:
        if not isinstance(error, StorageError) and not any(_FULL.search(str(each)) for each in _chain(error)):
            raise
        said = str(error).rstrip(".") if isinstance(error, StorageError) else f"{plan.run_dir.parent} cannot be written"
        space = space_of(plan, needs)
        free = "" if space.free is None else f", and {size(space.free)} are free"
        raise StorageError(f"{said}; this run needs about {size(space.needed)} more there{free}.") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _there(folder: Place) -> int:
    if isinstance(folder, Location):
        return sum(info.size or 0 for info in folder.listing(recursive=True)) if folder.is_dir() else 0
    try:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError:  # something goes on in there
        return 0


def _device(path: Place) -> int | None:
    if isinstance(path, Location):
        return None
    for each in (path, *path.parents):
        if each.exists():
            return each.stat().st_dev
    return None
