"""Turns the events of a stream into calls of a store, buffering while it is down. Knows no MLflow but the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.events import Event, Note, RowScored, StepDone, SuitesScored, TaskStarted, UpdateSkipped
from components.core.fingerprint import code_fingerprint
from components.core.naming import git_commit, metric_names
from components.evaluation.decisions import DECISIONS_FILE
from components.evaluation.matrix import MATRIX_FILE
from components.tracking.charts import stream_view
from components.tracking.config import DatasetRecord, Status, Tracker
from components.tracking.history import ScoreHistory, question
from components.tracking.points import Point, points, writes_whole
from components.tracking.registry import LEARNED, SCORE, Version, registered_name
from components.tracking.retry import CircuitBreaker

if TYPE_CHECKING:
    from components.tracking.store import MlflowStore

SEND_EVERY_S = 2.0  # step metrics are collected for this long
MAX_BATCH_POINTS = 2_000  # more than these are sent at once
MAX_WAITING_POINTS = 20_000  # kept through an outage without a queue on disk; the oldest go first
LAST_METRIC = "train/data_wait_s"  # of an update, in the order in which they are sent
NOTE_CHARS = 5000  # MLflow's limit


@dataclass(kw_only=True)
class _Child:
    """The run of one task, with what the store has not taken yet."""

    started: TaskStarted
    run_id: str | None = None  # None until the store has taken it
    recorded_until: int = -1  # the last update recorded before a resume
    waiting: list[Point] = field(default_factory=list)
    ended: Status | None = None  # then it is closed after its points


class StreamTracker(Tracker):
    """Records a stream: parent run = stream, child run = task. Built by `components.tracking.store.open_tracker`."""

    def __init__(
        self,
        store: MlflowStore,
        *,
        ui: str,
        tags: Mapping[str, str],
        on_note: Callable[[Note], None] | None = None,
    ) -> None:
        self._store, self._tags, self.ui = store, dict(tags), ui
        self._breaker = CircuitBreaker(on_note)
        self._history = ScoreHistory()
        self._waiting: list[tuple[RowScored | SuitesScored, int | None]] = []  # with the time they came
        self._whole_until = -1  # tasks learned when all of the matrix was written last
        self._known_children: dict[str, str] | None = None  # run ids by task
        self._children: list[_Child] = []  # the last one is learning; earlier ones could not be closed yet
        self._last_sent_s = 0.0

    @property
    def _parent(self) -> str:
        assert self.run_id is not None, "begin() comes first"
        return self.run_id

    def begin(
        self,
        run_name: str,
        params: Mapping[str, str],
        datasets: Sequence[DatasetRecord],
        resume_run_id: str | None,
        tasks: Sequence[str],
    ) -> None:
        """Create the parent run or reopen the old one. Raises `StoreError`; nothing is retried here."""
        known: dict[str, str] = {}
        if resume_run_id is None:
            self.run_id = self._store.create_run(run_name, {})
        else:
            self.run_id = resume_run_id
            known = self._store.reopen_run(resume_run_id)
            content = self._store.get_json(resume_run_id, MATRIX_FILE)
            self._history = ScoreHistory() if content is None else ScoreHistory.from_content(content)
            self._whole_until = max(self._history.scores, default=-1)
        changed = sorted(key for key, value in params.items() if known.get(key, value) != value)
        if changed:
            self._breaker.warn(
                f"MLflow keeps the first values of parameters that changed on resume: {', '.join(changed)}."
            )
        self._store.put_params(self._parent, {key: value for key, value in params.items() if key not in known})
        self._store.put_tags(self._parent, self._tags | _code_tags() | {"mlflow.note.content": self._note_content()})
        if resume_run_id is None:
            self._store.put_datasets(self._parent, datasets)
        tagged = {name: self._tags.get(name, "") for name in ("stream", "stream_digest", "backbone")}
        view = stream_view(
            tagged["stream"] or run_name, tasks, digest=tagged["stream_digest"], backbone=tagged["backbone"]
        )
        self._store.put_view(view)
        self.view = self._store.view_link(view.key)

    def remember(self, rows: Iterable[RowScored]) -> None:
        """Take rows for recorded that were sent before, since score_matrix.json may be older (see `writes_whole`)."""
        for row in rows:
            self._history = self._history.with_row(row) or self._history

    @property
    def is_waiting(self) -> bool:
        """Whether something that was handed over is not in the store yet."""
        return bool(self._waiting) or any(
            child.waiting or child.run_id is None or child.ended is not None for child in self._children
        )

    @property
    def is_down(self) -> bool:
        """Whether the store failed a moment ago and is left alone for a while."""
        return self._breaker.is_open

    @property
    def is_full(self) -> bool:
        """Whether the store's last failure was for want of room."""
        return self._breaker.full

    @property
    def taken(self) -> int:
        """Number of calls that the store has taken."""
        return self._breaker.taken

    def end_pause(self) -> None:
        """Try a store that failed again at once."""
        self._breaker.end_pause()

    def handle(self, event: Event, at_ms: int | None = None) -> None:
        """Record one event, of now or of `at_ms`. A failing store never raises; `on_note` receives a warning."""
        match event:
            case TaskStarted():
                self._end_children("FINISHED")
                first = points({"start_s": event.start_s}, step=0, at_ms=at_ms)
                self._children.append(_Child(started=event, waiting=first))
                self._send_children()
            case StepDone() | UpdateSkipped():
                self._collect(event, at_ms)
                due = time.monotonic() - self._last_sent_s >= SEND_EVERY_S
                if self._children and (due or len(self._children[-1].waiting) >= MAX_BATCH_POINTS):
                    self._send_children()
            case RowScored() | SuitesScored():
                self._send_children()
                self._waiting.append((event, at_ms))
                self._send_scores()
            case _:
                pass  # notes and progress are for the console

    def flush(self) -> None:
        """Send what is buffered."""
        self._send_children()
        self._send_scores()

    def close(self, status: Status) -> bool:
        """Send what is buffered and close the runs; False if the store does not take all of it."""
        self._end_children(status)
        self.flush()
        self._breaker.attempt("tasks of interrupted runs", self._close_interrupted, status)
        newest = max(self._history.scores, default=-1)
        if newest > self._whole_until:
            self._breaker.attempt("the score matrix", self._record_whole, self._history, newest)
        if self._children or self._waiting or self.is_down:
            return False
        return self._breaker.attempt("the end of the run", self._store.close_run, self._parent, status)

    def finish(self, status: Status) -> None:
        """Send what is buffered, retry a store that failed, and close the child and the parent run."""
        self._breaker.end_pause()
        if not self.close(status):
            self._breaker.warn(
                f"MLflow could not be reached at the end and lacks {len(self._waiting)} rows of scores and the curves "
                f"of {len(self._children)} tasks; the run's own files are whole."
            )

    def _close_interrupted(self, status: Status) -> None:
        """Close tasks that a killed driver left open. A finished run's are all finished, however they ended once.

        Of a finished run, what a stalled store made twice goes first: here, where all is sent and the stall is over.
        """
        if status == "FINISHED":
            self._store.remove_doubles(self._parent)
        still_open = {child.run_id for child in self._children}
        below = self._store.unfinished if status == "FINISHED" else self._store.running
        for run_id in below(self._parent):
            if run_id not in still_open:
                self._store.close_run(run_id, status)

    # ---- the task's run

    def _open_child(self, child: _Child) -> str:
        """Find the run of a resumed task, or create one."""
        event = child.started
        if self._known_children is None:
            self._known_children = self._store.children(self._parent)
        run_id = self._known_children.get(event.task)
        if run_id is None:
            tags = {"mlflow.parentRunId": self._parent, "task": event.task, "task_index": str(event.index)}
            known, self._known_children = self._known_children, None  # a run may be there though the call fails
            run_id = self._store.create_run(f"{event.index + 1:02d} {event.task}", self._tags | tags)
            facts = ("num_samples", "num_updates", "trainable_parameters", "total_parameters")
            self._store.put_params(run_id, {fact: str(getattr(event, fact)) for fact in facts})
            self._known_children = known | {event.task: run_id}
        else:
            self._store.reopen_run(run_id)
            # The last metric of an update: earlier ones may have gone without it, and go again.
            steps = self._store.steps(run_id, LAST_METRIC) or self._store.steps(run_id, "train/loss")
            child.recorded_until = max(steps | self._store.steps(run_id, "start_s"), default=-1)
            child.waiting = [point for point in child.waiting if point.step > child.recorded_until]
        child.run_id = run_id
        return run_id

    def _end_children(self, status: Status) -> None:
        for child in self._children:
            child.ended = child.ended or status

    def _send_children(self) -> None:
        """Send all that is buffered, task by task; stop at the first call that fails."""
        self._last_sent_s = time.monotonic()
        while self._children:
            child = self._children[0]
            sent = self._breaker.attempt("training metrics", self._send_child, child)
            if self._breaker.refused:
                child.waiting = []
            elif not sent:
                return
            if child.ended is None:
                return
            del self._children[0]

    def _send_child(self, child: _Child) -> None:
        run_id = child.run_id or self._open_child(child)
        if child.waiting:
            self._store.put_points(run_id, child.waiting)
            child.waiting = []
        if child.ended is not None:
            self._store.close_run(run_id, child.ended)

    def _collect(self, event: StepDone | UpdateSkipped, at_ms: int | None) -> None:
        if not self._children or event.update <= self._children[-1].recorded_until:
            return
        child = self._children[-1]
        if isinstance(event, UpdateSkipped):
            child.waiting += points({"train/skipped_updates": float(event.skipped)}, step=event.update, at_ms=at_ms)
            return
        values = {f"train/{part}": value for part, value in event.parts.items()} | {
            "train/loss": event.loss,
            "train/learning_rate": event.learning_rate,
            "train/grad_norm": event.grad_norm,
            "train/samples_per_s": event.samples_per_s,
            LAST_METRIC: event.data_wait_s,
        }
        child.waiting += points(values, step=event.update, at_ms=at_ms)
        del child.waiting[:-MAX_WAITING_POINTS]

    # ---- scores

    def _send_scores(self) -> None:
        """Record the buffered rows and suites in order; those that could not be sent stay buffered."""
        while self._waiting:
            event, at_ms = self._waiting[0]
            if isinstance(event, RowScored):
                taken = self._breaker.attempt("scores", self._record_row, event, at_ms)
            else:
                taken = self._breaker.attempt("general suites", self._record_suites, event, at_ms)
            if not taken and not self._breaker.refused:
                return
            del self._waiting[0]

    def _record_row(self, row: RowScored, at_ms: int | None) -> None:
        """One row on the parent run; for those of `writes_whole` all of the matrix, too."""
        history = self._history.with_row(row)
        if history is None:
            return  # a resumed stream reports its rows again
        step, run_id = row.tasks_learned, self._parent
        model_id = self._record_checkpoint(row, history) if row.checkpoint_path else None
        self._store.put_points(run_id, points(history.metrics(row), step=step, at_ms=at_ms), model_id)
        if row.decisions:
            self._store.put_json(run_id, row.decisions, DECISIONS_FILE)
        if row.samples:
            names = list(dict.fromkeys(name for sample in row.samples for name in sample))
            cells = [[sample.get(name, "") for name in names] for sample in row.samples]
            self._store.put_table(run_id, names, cells, f"predictions_sample/{step:02d}.json")
        if writes_whole(step, len(history.points or history.tasks)):
            if row.slot_usage:
                from components.evaluation.heatmap import draw_slot_usage

                picture = draw_slot_usage(row.slot_usage, f"Slots that served each task, after {row.after}")
                self._store.put_image(run_id, "slot_usage", picture, step)
            self._record_whole(history, step)
        self._history = history
        judged = {} if row.budget is None else {"forgetting_budget": row.budget}
        self._store.put_tags(run_id, {"mlflow.note.content": self._note_content(), **judged})

    def _record_whole(self, history: ScoreHistory, step: int) -> None:
        """The matrix as pictures, table and JSON. score_matrix.json comes last: a row that is in it is recorded."""
        # Matplotlib takes about a second to import, and only rows need it.
        from components.evaluation.heatmap import draw_score_matrix

        run_id, title = self._parent, self._title()
        self._store.put_image(run_id, "score_matrix", draw_score_matrix(history.matrix(step), title), step)
        if (oracle := history.variant("oracle", step)) is not None:
            self._store.put_image(run_id, "score_matrix_oracle", draw_score_matrix(oracle, f"{title}, oracle"), step)
        lines = [[after, *scores] for after, scores in zip(history.matrix().after, history.matrix().rows, strict=True)]
        self._store.put_table(run_id, ["after", *history.tasks], lines, "score_matrix_table.json")
        self._store.put_json(run_id, history.to_content(self._tags), MATRIX_FILE)
        self._whole_until = step

    def _record_checkpoint(self, row: RowScored, history: ScoreHistory) -> str:
        """Log the checkpoint as a model and register it as a version; its files stay where they are."""
        assert row.checkpoint_path is not None
        checkpoint = row.checkpoint_path
        uri = checkpoint if "://" in checkpoint else Path(checkpoint).absolute().as_uri()
        tags = self._tags | {"checkpoint": uri, "after": row.after, LEARNED: str(row.tasks_learned)}
        name = f"{self._tags.get('method', 'adapter')} after {row.tasks_learned:02d} {row.after}"
        model_id = self._store.put_model(self._parent, name, tags, row.tasks_learned)
        score = history.matrix(row.tasks_learned).summary().get("final_average")
        if score is not None:
            version = Version(
                name=registered_name(self._tags),
                run_id=self._parent,
                model_id=model_id,
                source=uri,
                tags=tags | _code_tags() | {SCORE: f"{score:.6f}"},
                whole=row.tasks_learned == len(row.points or row.scores),
            )
            self._store.put_version(version)
        return model_id

    def _record_suites(self, event: SuitesScored, at_ms: int | None) -> None:
        """general/SUITE and, beside it, every other figure of the suite, at step = tasks learned."""
        names, step, run_id = metric_names(list(event.figures)), event.tasks_learned, self._parent
        values = {f"general/{names[suite]}": found["score"] for suite, found in event.figures.items()}
        if any(step in self._store.steps(run_id, key) for key in values):
            return  # a resumed stream tells its suites again
        for suite, found in event.figures.items():
            legal = metric_names([figure for figure in found if figure != "score"])
            values |= {f"general/{names[suite]} {legal[figure]}": found[figure] for figure in legal}
        values |= {f"retention/{name}": value for name, value in event.retention.items()}
        self._store.put_points(run_id, points(values, step=step, at_ms=at_ms))

    def _title(self) -> str:
        names = [self._tags.get(key, "") for key in ("method", "stream")]
        return " on ".join(name for name in names if name) or "Score matrix"

    def _note_content(self) -> str:
        asked = question(self._tags)
        if not self._history.scores:
            return asked
        return f"{asked}\n\n{self._history.markdown(NOTE_CHARS - len(asked) - 10)}\n"


def _code_tags() -> dict[str, str]:
    commit = git_commit()
    return {"code_fingerprint": code_fingerprint()} | ({} if commit is None else {"mlflow.source.git.commit": commit})
