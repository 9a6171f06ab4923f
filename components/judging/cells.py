"""A run's replies judged cell by cell: the score matrix with a judge's grades in place of the scores."""

from __future__ import annotations

from collections.abc import Callable

from components.core.errors import ConfigError
from components.core.location import Place
from components.evaluation.matrix import ScoreMatrix
from components.evaluation.predictions import run_predictions
from components.judging.protocol import Exchange, Judge, Verdict, VerdictCache, judged

Cells = dict[tuple[str, str], list[Verdict]]  # (after, task)


def cells_of(path: Place, limit: int | None) -> dict[tuple[str, str], list[Exchange]]:
    """The replies by (after, task), in the order they were made; raises `ConfigError` without any."""
    columns = ["prompt", "prediction", "answers", "metric"]
    cells: dict[tuple[str, str], list[Exchange]] = {}
    for one in run_predictions(path, columns):
        found = cells.setdefault((one.after, one.task), [])
        if limit is None or len(found) < limit:
            found.append(
                Exchange(question=one.prompt, answers=tuple(one.answers), reply=one.prediction, box=one.metric == "iou")
            )
    if not cells:
        raise ConfigError(f"{path} has no predictions to judge; judge the folder of a finished run.")
    return cells


def judge_cells(
    judge: Judge, exchanges: dict[tuple[str, str], list[Exchange]], cache: VerdictCache, on_done: Callable[[int], None]
) -> Cells:
    """The verdicts of every cell; equal exchanges are judged once. `on_done` is called with how many are done."""
    everything = [exchange for found in exchanges.values() for exchange in found]
    verdicts = iter(judged(judge, everything, cache, on_done))
    return {key: [next(verdicts) for _ in found] for key, found in exchanges.items()}


def matrix_of(scored: ScoreMatrix, cells: dict[tuple[str, str], float | None]) -> ScoreMatrix:
    """The matrix `scored` with the judge's cells in place of the scores."""
    tasks = scored.tasks
    rows = [(after, {task: cells.get((after, task)) for task in tasks}) for after in scored.after]
    return ScoreMatrix.from_scores(tasks, rows, points=scored.points)


def facts_of(judge: Judge, cells: Cells, asked: int) -> dict[str, object]:
    """What a reader needs to trust or distrust the figures."""
    verdicts = [verdict for found in cells.values() for verdict in found]
    return {
        "judge": judge.identity,
        "judged": len(verdicts),
        "failed": sum(verdict.score is None for verdict in verdicts),
        "asked": asked,
    }
