"""The gallery of test rows learned then lost: their pictures, and what every run replied after each task.

One card is one test row, with the runs that lost it; its picture is in the page once. The gallery is limited in cards
and in bytes, and the cards are drawn evenly from runs and tasks, so that no long task hides the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from components.core.errors import ConfigError
from components.data.quality.thumbnails import Album, Thumbnail
from components.data.tasks import TaskStream
from components.evaluation.predictions import Prediction
from components.reporting.replies import LostRow, lost_rows
from components.runs.results import FinishedRun

CARDS = 60
PICTURE_ROOM = 1_500_000  # characters of all pictures together

Key = tuple[str, str]  # task, sample id


@dataclass(frozen=True, kw_only=True)
class RunLoss:
    """How one run lost the row. `line` names its line in the tables."""

    line: str
    run_id: str
    lost: LostRow


@dataclass(frozen=True, kw_only=True)
class RowCard:
    """One test row; `picture` is None for a row without one."""

    task: str
    sample_id: str
    picture: Thumbnail | None
    losses: tuple[RunLoss, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The cards, and how many rows were lost in all."""

    cards: tuple[RowCard, ...]
    num_rows: int  # rows that any run lost, shown or not
    counts: Mapping[str, Mapping[str, int]]  # run id -> kind -> rows lost, shown or not
    silent: tuple[str, ...]  # runs without replies: records


def gallery(
    groups: Mapping[str, Sequence[FinishedRun]], replies: Mapping[str, list[Prediction]], stream: TaskStream | None
) -> Gallery:
    """The rows that the runs lost; `replies` are those of `replies_of` by run id, `stream` None where there are none.

    Raises `ConfigError` when the stream is not the one the runs were scored on.
    """
    losses: dict[Key, list[RunLoss]] = {}
    queues: list[list[Key]] = []
    counts: dict[str, dict[str, int]] = {}
    silent: list[str] = []
    for line, run in ((line, run) for line, group in groups.items() for run in group):
        run_id = str(run.config.run_id)
        if not any(reply.sample_id and reply.prompt for reply in replies[run_id]):
            silent.append(run_id)
            continue
        digest = "none" if stream is None else stream.digest
        if digest != run.stream_digest:
            raise ConfigError(
                f"{run_id} was scored on other data (digest {run.stream_digest[:12]}) than the stream "
                f"{run.config.stream.name} holds here ({digest[:12]}); its pictures cannot be shown. Give the "
                "run's record instead of its folder, or put its data back."
            )
        found = lost_rows(run, replies[run_id])
        counts[run_id] = dict(Counter(kind for lost in found.values() for kind in lost.kinds))
        for key, lost in found.items():
            losses.setdefault(key, []).append(RunLoss(line=line, run_id=run_id, lost=lost))
        queues += [[key for key in found if key[0] == task] for task in run.matrix.tasks]
    shown = [] if stream is None else drawn_evenly(queues, stream.task_names)
    pictures = {} if stream is None else _pictures(stream, shown)
    return Gallery(
        cards=tuple(
            RowCard(task=key[0], sample_id=key[1], picture=pictures.get(key), losses=tuple(losses[key]))
            for key in shown
        ),
        num_rows=len(losses),
        counts=counts,
        silent=tuple(silent),
    )


def drawn_evenly(queues: Sequence[Sequence[Key]], tasks: Sequence[str]) -> list[Key]:
    """Rows in turn from every queue, `CARDS` at most, in the stream's order."""
    drawn = list(dict.fromkeys(key for turn in zip_longest(*queues) for key in turn if key is not None))[:CARDS]
    return sorted(drawn, key=lambda key: (tasks.index(key[0]), key[1]))


def _pictures(stream: TaskStream, shown: Sequence[Key]) -> dict[Key, Thumbnail]:
    album = Album(room=PICTURE_ROOM)
    found: dict[Key, Thumbnail] = {}
    for task in stream.tasks:
        wanted = {sample_id for name, sample_id in shown if name == task.name}
        for row in task.test.rows() if wanted else ():
            if row.sample_id in wanted:
                wanted.discard(row.sample_id)
                if row.images:
                    found[task.name, row.sample_id] = album.thumbnail(*row.images)
            if not wanted:
                break
    return found
