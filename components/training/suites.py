"""The general suites inside a run: scored when they are due, as tasks are, and remembered in general.json."""

from __future__ import annotations

import time
from collections.abc import Sequence

from components.core.events import SuitesScored
from components.data.suite import Suite
from components.evaluation.general import GENERAL_FILE, GeneralScores
from components.evaluation.manifest import note_digests
from components.evaluation.matrix import ZERO_SHOT
from components.evaluation.matrix_rows import MatrixRow, matrix_of
from components.evaluation.predictions import predictions_file
from components.evaluation.suite_figures import figures
from components.training.evaluate import RowScorer
from components.training.kept_cells import KeptCells
from components.training.plan import WorkerPlan


class SuiteScorer:
    """Scores the general suites of a run when they are due, as `RowScorer` scores tasks; all ranks call it together.

    general.json is the memory: a suite that it holds is not scored again after a restart. Every rank reads the file
    once, at the start. Rank 0 writes it, and can only do so after the other ranks have sent their replies.
    """

    def __init__(self, plan: WorkerPlan, scorer: RowScorer) -> None:
        self.plan, self.scorer = plan, scorer
        self.general = GeneralScores.read(plan.run_dir / GENERAL_FILE)

    def score(self, rows: Sequence[MatrixRow], *, learned: int) -> None:
        """Score what is due after `learned` tasks (0 = before any training) and still missing, and tell the driver.

        `rows` are the finished rows of the score matrix, for the stream's final average.
        """
        tasks = self.plan.stream.steps
        if not self.plan.suites or not (
            learned in (0, len(tasks)) or self.plan.config.evaluation.suites_after_every_task
        ):
            return
        started = time.monotonic()
        after, average = tasks[learned - 1] if learned else ZERO_SHOT, self._average(rows, learned)
        self.scorer.model.eval()
        missing = [suite for suite in self.plan.suites if not self.general.has(learned, suite.name)]
        if missing:
            cells = self.scorer.kept_cells(learned, after)
            for suite in missing:
                self._score(suite, cells, after, learned=learned, final_average=average)
            cells.tell(self.scorer.send, len(missing))
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

    def score_again(self, names: Sequence[str], rows: Sequence[MatrixRow], *, learned: int) -> None:
        """Score these suites once more with the method as it was after `learned` tasks."""
        after = self.plan.stream.steps[learned - 1] if learned else ZERO_SHOT
        average = self._average(rows, learned)
        self.scorer.model.eval()
        for suite in self.plan.suites:
            if suite.name in names:
                cells = self.scorer.kept_cells(learned, after)
                self._score(suite, cells, after, learned=learned, final_average=average)

    def _average(self, rows: Sequence[MatrixRow], learned: int) -> float | None:
        """The stream's final average so far."""
        stream = self.plan.stream
        matrix = matrix_of(stream.task_names, list(rows), points=stream.points)
        return matrix.summary().get("final_average") if learned else None

    def _score(self, suite: Suite, cells: KeptCells, after: str, *, learned: int, final_average: float | None) -> None:
        predictions = self.scorer.cell(cells, suite, after, num_rows=suite.test.num_rows)
        if self.scorer.rank != 0:
            return
        note_digests(self.plan.run_dir, [predictions_file(self.plan.run_dir, learned, after, suite=suite.name)])
        found = figures(suite.scoring, predictions)
        self.general = self.general.plus(learned, after, suite.name, found)
        self.general.write(self.plan.run_dir / GENERAL_FILE, final_average)
