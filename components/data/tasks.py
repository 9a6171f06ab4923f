"""Tasks and streams: what is learned, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.data.mixture import Mixture
    from components.data.rows import Split


@dataclass(frozen=True, kw_only=True)
class Task:
    """One dataset to learn: a train split, the rows to score, and how long its answers may get (tokens)."""

    name: str
    train: Split
    test: Split  # the rows that are scored: the test split, or the validation part in its place
    max_new_tokens: int
    unscored: Split | None = None  # with a validation part: that one, or the test split when it is scored itself

    @property
    def scored_on(self) -> str:
        """ "validation" where that part is scored, else "test"."""
        return "validation" if self.test.split == "validation" else "test"

    @property
    def identity(self) -> str:
        """The task's part of the stream's digest."""
        return f"{self.name}:{self.train.digest}:{self.test.digest}:{self.max_new_tokens}"


@dataclass(frozen=True, kw_only=True)
class TaskStream:
    """Tasks in the order in which they are learned, or with a `mixture` in segments that hold rows of several."""

    name: str
    tasks: tuple[Task, ...]
    mixture: Mixture | None = None  # None: clear boundaries

    @property
    def task_names(self) -> list[str]:
        return [task.name for task in self.tasks]

    @property
    def points(self) -> list[str] | None:
        """Names of the segments after which a stream without boundaries is scored; None with clear boundaries."""
        return None if self.mixture is None else self.mixture.segment_names(len(self.tasks))

    @property
    def steps(self) -> list[str]:
        """What is learned one after another, as the matrix's rows are named: the tasks, or the segments."""
        return self.points or self.task_names

    @property
    def splits(self) -> list[Split]:
        """Training and test part of every task, in order."""
        return [split for task in self.tasks for split in (task.train, task.test)]

    @property
    def digest(self) -> str:
        """Identity of the stream: names, order and data of its tasks, and how they are mixed."""
        mixed = () if self.mixture is None else (self.mixture.identity(len(self.tasks)),)
        return stream_digest((*(task.identity for task in self.tasks), *mixed))


def stream_digest(identities: Iterable[str]) -> str:
    """The digest of a stream whose tasks have these identities, in order."""
    return hashlib.sha256("\n".join(identities).encode()).hexdigest()
