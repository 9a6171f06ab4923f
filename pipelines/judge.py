"""Grade a finished run's replies with a judge: CoIN's general knowledge, and open answers that no rule can score.

    littoral judge runs/first                                   # offline: sentence similarity, weak
    littoral judge runs/first --judge.kind endpoint --judge.base-url http://127.0.0.1:8000/v1 --judge.model M
    littoral judge runs/first --judge.kind local --judge.model DIR

Writes `judged_matrix.json` into the run's folder (0..100, ten times the mean grade) and adds it to the run in MLflow.
Verdicts are kept in STORAGE/judge_cache.jsonl: the same command goes on where it stopped, and asks nothing twice.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("judge"))

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import Progress

from components.console.live import Console
from components.core.errors import ConfigError
from components.evaluation.matrix import ScoreMatrix, variant_file
from components.evaluation.predictions import run_predictions
from components.judging.backends import WEAKNESS, JudgeConfig
from components.judging.protocol import (
    Exchange,
    Judge,
    Verdict,
    VerdictCache,
    cell,
    judged,
)
from components.runs.results import FinishedRun, read_run
from components.tracking.store import record_variant
from pipelines.littoral import read_options

CACHE_FILE = "judge_cache.jsonl"
Cells = dict[tuple[str, str], list[Verdict]]  # (after, task)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Which run is judged, and by whom."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run (STORAGE/RUN-ID)."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    limit: int | None = None
    """Judge only the first replies of every cell."""
    max_failed: float = 0.02
    """Share of a cell's replies that may stay without a grade; with more, the cell is missing. None counts as zero."""
    cache: Path | None = None
    """File of verdicts; default: judge_cache.jsonl beside the run's folder."""
    debug: bool = False
    """A traceback instead of one sentence."""


def main(arguments: Sequence[str]) -> int:
    """Judge every reply, write the matrix, show it."""
    command = read_options(Judgement, arguments, name="judge", description=(__doc__ or "").split("\n\n")[0])
    path = command.run.expanduser().resolve()
    run, judge = read_run(path), command.judge.build()
    cells, asked = judge_cells(command, path, judge)
    matrix = matrix_of(run, {key: cell(found, max_failed=command.max_failed) for key, found in cells.items()})
    facts = facts_of(judge, cells, asked)
    matrix.write(
        variant_file(path, "judged"),
        stream=run.config.stream.name,
        method=run.config.method.name,
        backbone=run.config.backbone.name,
        seed=run.config.seed,
        extra=facts,
    )
    if run.mlflow_id is not None:
        record_variant(run.config.tracking, path.parent, run.mlflow_id, "judged", matrix, facts)
    show(command, path, matrix, facts)
    return 0


def judge_cells(command: Judgement, path: Path, judge: Judge) -> tuple[Cells, int]:
    """The verdicts of every cell of the matrix, and how many differ: equal exchanges are judged once."""
    exchanges = cells_of(path, command.limit)
    cache = VerdictCache(command.cache or path.parent / CACHE_FILE)
    everything = [exchange for found in exchanges.values() for exchange in found]
    with Progress(transient=True) as progress:
        bar = progress.add_task("judging", total=len(everything))
        verdicts = judged(judge, everything, cache, lambda done: progress.update(bar, completed=done))
    left = iter(verdicts)
    return {key: [next(left) for _ in found] for key, found in exchanges.items()}, len(set(everything))


def cells_of(path: Path, limit: int | None) -> dict[tuple[str, str], list[Exchange]]:
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


def matrix_of(run: FinishedRun, cells: dict[tuple[str, str], float | None]) -> ScoreMatrix:
    """The run's matrix with the judge's cells in place of the scores."""
    tasks = run.matrix.tasks
    rows = [(after, {task: cells.get((after, task)) for task in tasks}) for after in run.matrix.after]
    return ScoreMatrix.from_scores(tasks, rows)


def facts_of(judge: Judge, cells: Cells, asked: int) -> dict[str, object]:
    """What a reader needs to trust or distrust the figures."""
    verdicts = [verdict for found in cells.values() for verdict in found]
    return {
        "judge": judge.identity,
        "judged": len(verdicts),
        "failed": sum(verdict.score is None for verdict in verdicts),
        "asked": asked,
    }


def show(command: Judgement, path: Path, matrix: ScoreMatrix, facts: dict[str, object]) -> None:
    """The judged matrix, and what to think of it."""
    console = Console()
    console.print_matrix(matrix)
    told = {name: str(value) for name, value in facts.items()}
    console.print_outcome({**told, "written": str(variant_file(path, "judged"))})
    if WEAKNESS[command.judge.kind]:
        print(f"Read it with care: {WEAKNESS[command.judge.kind]}")
