"""General suites in a run: answered by the row scorer's own one-pass evaluation, kept in general.json.

The file is the memory: a suite that it holds is not scored again after a restart. Every rank reads it once, at the
start; rank 0 writes it, which it can only do after the other ranks have sent their replies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from components.core.events import SuitesScored
from components.data.suite import Suite
from components.evaluation.general import GENERAL_FILE, GeneralScores
from components.evaluation.suite_figures import Scored, figures
from components.training.evaluate import ZERO_SHOT, MatrixRow, Record, RowScorer, matrix_of, write_predictions

if TYPE_CHECKING:
    from components.training.entry import WorkerPlan


class SuiteScorer:
    """Scores the suites of a run when they are due; all ranks call it together."""

    def __init__(self, plan: WorkerPlan, scorer: RowScorer) -> None:
        self.plan, self.scorer = plan, scorer
        self.general = GeneralScores.read(plan.run_dir / GENERAL_FILE)

    def score(self, rows: Sequence[MatrixRow], *, learned: int) -> None:
        """Score what is due after `learned` tasks (0 = before any training) and still missing, and tell the driver.

        `rows` are the finished rows of the score matrix, for the stream's final average.
        """
        tasks = self.plan.stream.task_names
        if not self.plan.suites or not (
            learned in (0, len(tasks)) or self.plan.config.evaluation.suites_after_every_task
        ):
            return
        started = time.monotonic()
        after = tasks[learned - 1] if learned else ZERO_SHOT
        average = matrix_of(tasks, list(rows)).summary().get("final_average") if learned else None
        self.scorer.model.eval()
        for suite in self.plan.suites:
            if not self.general.has(learned, suite.name):
                self._score(suite, after, learned=learned, final_average=average)
        if self.scorer.rank == 0:
            self.scorer.send(
                SuitesScored(
                    tasks_learned=learned,
                    after=after,
                    figures={name: dict(found) for name, found in self.general.figures[learned].items()},
                    retention=self.general.summary(average, learned),
                    evaluate_s=time.monotonic() - started,
                )
            )

    def _score(self, suite: Suite, after: str, *, learned: int, final_average: float | None) -> None:
        records = self.scorer.records(suite, after, num_rows=suite.test.num_rows)
        if self.scorer.rank != 0:
            return
        folder = self.plan.run_dir / "predictions" / "general"
        write_predictions(folder / f"{learned:02d}-{after}-{suite.name}.parquet", records)
        found = figures(suite.scoring, [_scored(record) for record in records])
        self.general = self.general.plus(learned, after, suite.name, found)
        self.general.write(self.plan.run_dir / GENERAL_FILE, final_average)


def _scored(record: Record) -> Scored:
    return Scored(
        sample_id=str(record["sample_id"]),
        prediction=str(record["prediction"]),
        answers=tuple(cast("list[str]", record["answers"])),
        score=float(str(record["score"])),
        compat=None if record["compat_score"] is None else float(str(record["compat_score"])),
    )
