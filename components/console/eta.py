"""Time left of a stream: updates to make and test rows to answer, at the speeds seen so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from components.core.events import RowScored, StepDone, TaskStarted

SMOOTHING = 0.1  # weight of the newest update's duration; about the last 20 updates count
LONGEST_UPDATE_S = 600.0  # a longer gap is a pause (a restart, a suspended machine), not an update


@dataclass(frozen=True, kw_only=True)
class PlannedTask:
    """One task of a stream as planned."""

    name: str
    train_rows: int
    test_rows: int  # those that are scored
    num_updates: int
    unscored_rows: int = 0  # of a validation part; of the test split, when the validation part is scored
    holds: str = ""  # of a segment: its training rows by task. After it all tasks are scored, and those are its rows


@dataclass(kw_only=True)
class TimeLeft:
    """Fed with events and their arrival times (seconds, any clock that only goes forward)."""

    tasks: Sequence[PlannedTask]
    zero_shot_left: bool = False  # a zero-shot row is planned and not scored yet
    beside: bool = False  # rows are scored while tasks are learned
    _update_s: float | None = None  # smoothed duration of one update
    _last_step_s: float | None = None  # when the last update of the running task ended
    _learned: int = 0  # tasks whose row is scored
    _task: int = 0  # the task being learned
    _updates_done: int = 0  # within it
    _evaluate_s: float = 0.0  # spent on rows so far
    _answered: int = 0  # test rows answered for them
    _sees_all: bool = False  # rows after a task cover unseen tasks too
    _planned_updates: dict[int, int] = field(default_factory=dict)

    @property
    def in_segments(self) -> bool:
        """Whether the stream has no boundaries between its tasks."""
        return bool(self.tasks and self.tasks[0].holds)

    def add(self, event: TaskStarted | StepDone | RowScored, now_s: float) -> None:
        """Learn from one event."""
        match event:
            case TaskStarted():
                self._task, self._updates_done = event.index, event.resumed_at
                self._planned_updates[event.index] = event.num_updates
                self._last_step_s = None  # the first update includes compilation and warm-up
            case StepDone():
                if self._last_step_s is not None and now_s - self._last_step_s < LONGEST_UPDATE_S:
                    took_s = now_s - self._last_step_s
                    before_s = took_s if self._update_s is None else self._update_s
                    self._update_s = before_s + SMOOTHING * (took_s - before_s)
                self._last_step_s, self._task, self._updates_done = now_s, event.index, event.update
            case RowScored():
                seen = {task for task, score in event.scores.items() if score is not None}
                rounds = 2 if "oracle" in event.variants else 1
                scored = self.tasks[:1] if self.in_segments else [task for task in self.tasks if task.name in seen]
                self._answered += rounds * sum(task.test_rows for task in scored)
                self._evaluate_s += event.evaluate_s
                self._learned = event.tasks_learned
                self.zero_shot_left = False
                if event.tasks_learned >= 1:
                    self._sees_all = len(seen) > event.tasks_learned
                if event.tasks_learned > self._task:  # else the next task is being learned already
                    self._task, self._updates_done = event.tasks_learned, 0

    def updates_left(self) -> int:
        """Updates still to make in the whole stream."""
        later = sum(self._planned(index) for index in range(self._task + 1, len(self.tasks)))
        now = max(self._planned(self._task) - self._updates_done, 0) if self._task < len(self.tasks) else 0
        return now + later

    def answers_left(self) -> int:
        """Test rows still to answer in the rows of the matrix to come."""
        if self.in_segments:
            return self.tasks[0].test_rows * (len(self.tasks) - self._learned + self.zero_shot_left)
        whole = sum(task.test_rows for task in self.tasks)
        total = whole if self.zero_shot_left else 0
        for learned in range(self._learned + 1, len(self.tasks) + 1):
            total += whole if self._sees_all else sum(task.test_rows for task in self.tasks[:learned])
        return total

    def seconds(self) -> float | None:
        """Seconds to the end of the stream; None before the speed is known."""
        updates = self.updates_left()
        if updates and self._update_s is None:
            return None
        learning_s, answering_s = updates * (self._update_s or 0.0), self.evaluation_seconds()
        return max(learning_s, answering_s) if self.beside else learning_s + answering_s

    def evaluation_seconds(self) -> float:
        """The part of `seconds` for evaluations; 0 until a first row has shown how long answers take."""
        return self.answers_left() * self._evaluate_s / self._answered if self._answered else 0.0

    @property
    def knows_evaluation(self) -> bool:
        """Whether a scored row has shown how long answers take (before that, `seconds` is a lower bound)."""
        return self._answered > 0 or self.answers_left() == 0

    def _planned(self, index: int) -> int:
        return self._planned_updates.get(index, self.tasks[index].num_updates)


def duration_text(seconds: float) -> str:
    """Seconds for people: "42 s", "3 min", "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
