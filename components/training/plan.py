"""What a run would do, before anything starts; and the same with what its workers need to know."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ray.actor import ActorHandle
from ray.util.queue import Queue

from components.core.errors import ConfigError
from components.core.location import Place
from components.core.machine import require_cache
from components.data.segments import Segment
from components.data.streams import data_root, kept_beside
from components.data.suite import Suite
from components.data.suites.opening import open_suites
from components.data.tasks import Task, TaskStream
from components.evaluation.choosing import row_options
from components.evaluation.matrix import ZERO_SHOT
from components.evaluation.matrix_rows import MatrixRow
from components.methods import require_task_free
from components.models.source import model_source
from components.tracking.config import tracking_uri
from components.training.config import Chosen, RunConfig
from components.training.lengths import Fitted, fit_to_backbone, with_segments
from components.training.lineage import Origin, opened, read_origin
from components.training.measuring import rows_to_count
from components.training.schedule import ScheduledTask, plan_schedule
from components.training.task_cache import CachedTask

if TYPE_CHECKING:  # imports Ray Data, which a plan does not need
    from components.training.vision_cache import VisionCache

SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a job that `ray job submit` started


@dataclass(frozen=True, kw_only=True)
class Again:
    """What was scored and is damaged; the workers answer it once more, from the checkpoint that it came after."""

    rows: tuple[int, ...] = ()  # of the matrix, by the number of tasks learned before
    suites: tuple[tuple[int, str], ...] = ()  # the same for general suites
    decisions: bool = False  # decisions.json is to be written anew


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do, before anything starts."""

    config: RunConfig
    stream: TaskStream
    schedule: tuple[ScheduledTask, ...]  # one per task or segment, in stream order
    suites: tuple[Suite, ...]  # scored beside the stream, never learned
    run_dir: Place
    fitted: Fitted = field(default_factory=Fitted)  # how the rows fit the backbone
    chosen: Chosen | None = None  # how a sweep chose the options; None: unknown
    origin: Origin | None = None  # the run that this one continued from; the first tasks of its stream are learned
    again: Again = field(default_factory=Again)
    with_options: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By task and suite, where replies may be chosen: scored rows that have options, and all."""
    shared_dir: Place | None = None  # where runs of one sweep leave and find learned tasks; None: every run learns all

    @property
    def num_tasks(self) -> int:
        """Tasks or segments that the run learns, from the first; a task that was unlearned stands behind them and is
        only scored."""
        return len(self.schedule) - (self.origin is not None and self.origin.unlearned is not None)

    def after(self, learned: int) -> str:
        """The name of the matrix's row after `learned` tasks."""
        return self.stream.steps[learned - 1] if learned else ZERO_SHOT

    def due(self, learned: int) -> tuple[Task, ...]:
        """The tasks that this row scores."""
        # With them a task that was unlearned, whose score says what is left of it. Without boundaries every task may
        # have been learned from.
        mixed = self.stream.mixture is not None
        everything = not learned or self.config.evaluation.unseen or learned == self.num_tasks or mixed
        return self.stream.tasks if everything else self.stream.tasks[:learned]

    def rows_before(self, rows: Sequence[MatrixRow], learned: int) -> list[MatrixRow]:
        """The rows before that one: `rows`, which are the first of them, then empty ones after tasks without a row."""
        names, tasks = self.stream.steps, self.stream.task_names
        last = names.index(rows[-1].after) + 1 if rows and rows[-1].after != ZERO_SHOT else 0
        empty = (MatrixRow(after=name, scores=dict.fromkeys(tasks)) for name in names[last : max(last, learned - 1)])
        return [*rows, *empty]


@dataclass(frozen=True, kw_only=True)
class WorkerPlan(Plan):
    """The plan as the driver sends it to its workers: plain data, pickled by Ray."""

    code: str  # fingerprint of the driver's sources
    code_root: str
    event_queue: Queue | None  # events for the driver
    shared: Place  # where runs leave what others can use; a worker's own environment may name another place
    cache: VisionCache | None = None  # features of the pictures; None: pictures are decoded
    cached: tuple[CachedTask | None, ...] = ()  # by scheduled task: where runs of one sweep leave and find it
    scorers: tuple[ActorHandle, ...] = ()  # score rows beside training; none: the workers do, in turn with it


def plan_stream(config: RunConfig, origin: Origin | None = None) -> Plan:
    """Resolve data and check that every task can train; raises `ConfigError`/`DataError`, starts no process.

    `origin`: the run that a new one continues from; one that has begun has it in its folder.
    """
    if config.run_id is None:
        raise ConfigError("a run needs an id; give --run-id NAME.")
    require_lasting_storage(config.storage)
    require_cache()
    family = model_source(config.backbone).family_class()
    config.method.check_family(family, backbone=config.backbone.name)
    run_dir = config.place / config.run_id
    if config.tracking.enabled:
        tracking_uri(config.tracking, run_dir.parent)  # raises where there can be none
    origin = origin or read_origin(run_dir)
    data = kept_beside(run_dir.parent, config.stream)
    stream = opened(data, origin, scored=config.evaluation.split)
    if stream.mixture is not None:
        require_task_free(config.method, stream.name)
        stream.mixture.check_tasks(stream.task_names)
    suites = open_suites(config.evaluation.suites, data_root(data), stream)
    stream, suites, fitted = fit_to_backbone(
        config.backbone,
        data,
        stream,
        suites,
        limit=config.evaluation.limit,
        reached=rows_to_count(config, stream),
    )
    with_options = rows_with_options(config, stream, suites)
    schedule, learned = plan_schedule(replace(config, stream=data), stream), 0
    fitted = with_segments(fitted, [each.task for each in schedule if isinstance(each.task, Segment)])
    if origin is not None:
        origin.require_same_rows(stream, fitted.template)
        learned = origin.at_task
        if origin.unlearned is not None:
            learned = len(schedule)
    return Plan(
        config=config,
        stream=stream,
        schedule=(*(replace(each, num_updates=0) for each in schedule[:learned]), *schedule[learned:]),
        suites=suites,
        run_dir=run_dir,
        fitted=fitted,
        origin=origin,
        with_options=with_options,
    )


def rows_with_options(config: RunConfig, stream: TaskStream, suites: Sequence[Suite]) -> dict[str, tuple[int, int]]:
    """For `Plan.with_options`: empty where all replies are generated; `ConfigError` where no row has options."""
    if config.evaluation.replies == "generated":
        return {}
    found = dict[str, tuple[int, int]]()
    for scored in (*stream.tasks, *suites):
        limit = None if isinstance(scored, Suite) else config.evaluation.limit
        rows = [bool(row_options(row)) for row in scored.test.rows(with_image=False, limit=limit)]
        found[scored.name] = sum(rows), len(rows)
    if not any(count for count, _ in found.values()):
        raise ConfigError(
            f"evaluation.replies {config.evaluation.replies} chooses among a row's options, and no row of "
            f"{', '.join(found)} has any (letters, listed words, yes or no); use generated, or score other rows."
        )
    return found


def require_lasting_storage(storage: str | Path) -> None:
    """Raise `ConfigError` for a relative folder inside a submitted job: it would be deleted with the job's copy."""
    if SUBMITTED_JOB in os.environ and isinstance(storage, Path) and not storage.expanduser().is_absolute():
        raise ConfigError(
            f"storage {str(storage)!r} is relative, and a submitted job works in a copy that is deleted afterwards; "
            "give --storage an absolute folder that every node sees, or a URI."
        )
