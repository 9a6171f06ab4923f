"""What a run has cost so far, counted from its events and kept in its folder. MLflow shows the same numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from components.core.events import Event, RowScored, StepDone, TaskStarted
from components.core.files import write_json
from components.core.location import Place
from components.core.options import CountOrZero, NonNegative, read_kept

COSTS_FILE = "costs.json"


@dataclass(kw_only=True)
class RowCost:
    """Seconds until one row of the score matrix was there. A row that is scored again adds to its own."""

    after: str  # "zero-shot" or the task just learned
    tasks_learned: CountOrZero
    train_s: NonNegative = 0.0
    evaluate_s: NonNegative = 0.0
    replies: CountOrZero = 0  # rows scored, when it was last scored; 0 in files of earlier versions
    kept_replies: CountOrZero = 0  # of them, those that were not answered again


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a whole stream took."""

    train_s: float
    evaluate_s: float
    trainable_parameters: int  # most in any one task


@dataclass(kw_only=True)
class Costs:
    """The content of costs.json; a continued run goes on counting."""

    trainable_parameters: CountOrZero = 0  # most in any task so far
    updates: CountOrZero = 0  # optimizer updates this run made itself: a reused task adds none
    rows: list[RowCost] = field(default_factory=list)

    @classmethod
    def read(cls, run_dir: Place) -> Costs:
        """From a run's folder; empty where it has no costs.json. Raises `ConfigError` for a broken one."""
        return read_kept(cls, run_dir / COSTS_FILE, "delete it to go on without the costs") or cls()

    def until(self, learned: int) -> Costs:
        """Those of the rows after at most `learned` tasks, for a run that takes these over and has made no update."""
        rows = [row for row in self.rows if row.tasks_learned <= learned]
        return Costs(trainable_parameters=self.trainable_parameters, rows=rows)

    def write(self, run_dir: Place) -> None:
        """Replace the folder's costs.json atomically."""
        write_json(run_dir / COSTS_FILE, asdict(self))

    def add(self, event: Event) -> None:
        """Count one event of the running stream."""
        match event:
            case TaskStarted():
                self.trainable_parameters = max(self.trainable_parameters, event.trainable_parameters)
            case StepDone():
                self.updates += 1
            case RowScored():
                row = self._row(event)
                row.train_s += event.train_s
                row.evaluate_s += event.evaluate_s
                row.replies, row.kept_replies = event.replies, event.kept_replies
            case _:
                pass

    def total(self, measured: Iterable[str]) -> Cost | None:
        """The cost of the rows after `measured`; None where one was not counted, as in runs of an earlier version."""
        counted = {row.after: row for row in self.rows}
        if not counted or not counted.keys() >= set(measured):
            return None
        return Cost(
            train_s=sum(row.train_s for row in self.rows),
            evaluate_s=sum(row.evaluate_s for row in self.rows),
            trainable_parameters=self.trainable_parameters,
        )

    def _row(self, event: RowScored) -> RowCost:
        for row in self.rows:
            if row.after == event.after and row.tasks_learned == event.tasks_learned:
                return row
        self.rows.append(RowCost(after=event.after, tasks_learned=event.tasks_learned))
        return self.rows[-1]
