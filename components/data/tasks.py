"""Tasks and streams: what is learned, and in which order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from components.data.rows import Split


@dataclass(frozen=True, kw_only=True)
class Task:
    """One dataset to learn: a train split, a test split, and how long its answers may get (tokens)."""

    name: str
    train: Split
    test: Split
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class TaskStream:
    """Tasks in the order in which they are learned."""

    name: str
    tasks: tuple[Task, ...]

    @property
    def task_names(self) -> list[str]:
        return [task.name for task in self.tasks]

    @property
    def digest(self) -> str:
        """Identity of the stream: names, order and data of its tasks."""
        parts = [f"{task.name}:{task.train.digest}:{task.test.digest}:{task.max_new_tokens}" for task in self.tasks]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
