"""Runs that begin where another run had learned some tasks (`coast --continue-from`): what such a run knows of it.

origin.json, in the run's folder, says which run that was, after which task, and where the learned tasks' data are. With
what `takeover.py` copies beside it, the run needs nothing more of the other one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from components.core.errors import ConfigError
from components.core.files import write_json
from components.core.location import AnyPlace, Place, place
from components.core.options import Count, read_kept, to_plain
from components.core.run_files import KEPT_CHECKPOINTS, ORIGIN_FILE
from components.data.stream_config import StreamConfig
from components.data.tasks import Task, TaskStream


@dataclass(frozen=True, kw_only=True)
class Part:
    """Tasks that were learned from one stream, in order."""

    stream: StreamConfig
    tasks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Unlearned:
    """A task that was taken out of what another run had learned (`littoral unlearn`)."""

    task: str
    checkpoint: str  # the name of the one that it was taken out of, in that run
    digest: str  # SHA-256 of that one's state.json, which has those of its tensors
    learned: tuple[str, ...]  # tasks that it holds
    traces: str = ""  # what later tasks keep of it; empty: nothing


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The run that another one continued from."""

    run: str  # its id
    folder: str  # where it was then
    at_task: Count  # tasks of it that are taken over as learned
    score_again: bool  # the row after the last of them is not taken over
    stream_name: str  # of its stream
    stream_digest: str
    parts: tuple[Part, ...]  # the learned tasks
    identities: tuple[str, ...]  # `Task.identity` of each
    template: str  # how rows were written
    mlflow_run: str | None = None
    unlearned: Unlearned | None = None  # a task that is not taken over, and not learned again
    earlier: tuple[tuple[str, Count], ...] = ()  # runs and tasks that it had itself continued from, oldest first

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the learned tasks, in order."""
        return tuple(name for part in self.parts for name in part.tasks)

    @property
    def named(self) -> str:
        """`first after task 2 (iconqa)`, `first without task iconqa`."""
        if self.unlearned is not None:
            return f"{self.run} without task {self.unlearned.task}"
        return f"{self.run} after task {self.at_task} ({self.tasks[-1]})"

    @property
    def rows_of_tasks(self) -> int:
        """Learned tasks whose rows of scores are taken over."""
        return self.at_task - self.score_again

    def checkpoint_in(self, run_dir: AnyPlace) -> AnyPlace:
        """The checkpoint of the last of them, in the folder of either run."""
        return run_dir / KEPT_CHECKPOINTS / f"{self.at_task:02d}-{self.tasks[-1]}"

    def number_there(self, after: str) -> int:
        """How many tasks the other run had learned before its row after the task `after`, or after none."""
        learned = self.tasks if self.unlearned is None else self.unlearned.learned
        return learned.index(after) + 1 if after in learned else 0

    @property
    def place(self) -> Place:
        """Where it was then."""
        return place(self.folder)

    def checkpoint_there(self) -> Place:
        """The checkpoint that was taken over, in the other run's folder."""
        if self.unlearned is not None:
            return self.place / KEPT_CHECKPOINTS / self.unlearned.checkpoint
        return self.checkpoint_in(self.place)

    def write(self, run_dir: Place) -> None:
        """Write origin.json into a run's folder."""
        write_json(run_dir / ORIGIN_FILE, to_plain(self))

    def joined(self, stream: TaskStream, *, scored: str, data_dir: str | Path | None = None) -> TaskStream:
        """The learned tasks, then those of `stream` that are not among them.

        `data_dir`: where splits are kept, if the run of the learned tasks does not say it.

        Raises `ConfigError` where none is left, and for a task that has the name of a learned one and other data.
        """
        if stream.mixture is not None:
            raise ConfigError(
                f"the stream {stream.name} has no boundaries between its tasks and is learned from its beginning; give "
                "--continue-from another stream, or begin a run without it."
            )
        learned = {task.name: task for task in self._opened(scored, data_dir)}
        for task in stream.tasks:
            if task.name in learned and task.identity != learned[task.name].identity:
                raise ConfigError(
                    f"task {task.name} of stream {stream.name} has the name of a task that run {self.run} learned, and "
                    "other data; give it another name, or leave it out with --stream.order."
                )
        added = tuple(task for task in stream.tasks if task.name not in learned)
        if not added:
            raise ConfigError(
                f"run {self.run} has learned every task of stream {stream.name} by then ({', '.join(learned)}); name "
                "tasks to add with --stream.name, or give --at-task an earlier task."
            )
        name = stream.name if stream.name in self.stream_name.split("+") else f"{self.stream_name}+{stream.name}"
        return TaskStream(name=name, tasks=(*learned.values(), *added))

    def require_same_rows(self, stream: TaskStream, template: str) -> None:
        """Raise `ConfigError` where the learned tasks' rows, as the model gets them, are not those that were learned.

        `stream` begins with the learned tasks, as they fit the backbone.
        """
        for task, identity in zip(stream.tasks, self.identities, strict=False):
            if task.identity != identity:
                raise ConfigError(
                    f"the data of task {task.name} are not those that run {self.run} learned; give back its data, and "
                    "leave --backbone.max-length and --backbone.too-long as they were."
                )
        if template != self.template:
            raise ConfigError(
                f"run {self.run} wrote conversations by the template {self.template}, this command by {template}; give "
                f"--backbone.template {self.template}."
            )

    def _opened(self, scored: str, data_dir: str | Path | None) -> Iterator[Task]:
        from components.data.streams import open_stream  # imports pyarrow

        for part in self.parts:
            config = replace(part.stream, order=part.tasks, data_dir=part.stream.data_dir or data_dir)
            yield from open_stream(config, scored=scored).tasks


def read_origin(run_dir: Place) -> Origin | None:
    """What a run's folder says of the run that it continued from; None for one that began as usual.

    Raises `ConfigError` for a damaged file.
    """
    return read_kept(Origin, run_dir / ORIGIN_FILE, "restore the file from a copy of the run's folder")


def opened(config: StreamConfig, origin: Origin | None, *, scored: str) -> TaskStream:
    """The stream of a run: what `config` names, behind the tasks that its origin had learned."""
    from components.data.streams import open_stream  # imports pyarrow

    stream = open_stream(config, scored=scored)
    return stream if origin is None else origin.joined(stream, scored=scored, data_dir=config.data_dir)
