"""Grade a finished run's replies with a judge: CoIN's general knowledge, and open answers that no rule can score.

    python pipelines/judge.py runs/first                                   # offline: sentence similarity, weak
    python pipelines/judge.py runs/first --judge.kind endpoint --judge.base-url http://127.0.0.1:8000/v1 --judge.model M
    python pipelines/judge.py runs/first --judge.kind local --judge.model DIR

Writes `judged_matrix.json` into the run's folder (0..100, ten times the mean grade) and adds it to the run in MLflow.
Verdicts are kept in STORAGE/judge_cache.jsonl: the same command goes on where it stopped, and asks nothing twice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pipelines.command import guarded, quiet_environment

quiet_environment()

import pyarrow.parquet as pq  # noqa: E402  (the environment comes before heavy imports)
import tyro  # noqa: E402
from rich.progress import Progress  # noqa: E402

from components.console import Console  # noqa: E402
from components.errors import ConfigError  # noqa: E402
from components.evaluation.judge import Exchange, Judge, Verdict, VerdictCache, cell, judged  # noqa: E402
from components.evaluation.judges import WEAKNESS, JudgeConfig  # noqa: E402
from components.evaluation.matrix import ScoreMatrix  # noqa: E402
from components.recorded import FinishedRun, read_run  # noqa: E402
from components.tracking import record_reading  # noqa: E402

MATRIX_FILE, CACHE_FILE = "judged_matrix.json", "judge_cache.jsonl"
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


def main() -> int:
    """Judge every reply, write the matrix, show it."""
    command = tyro.cli(Judgement, prog="judge.py", description=(__doc__ or "").split("\n\n")[0])
    path = command.run.expanduser().resolve()
    run, judge = read_run(path), command.judge.build()
    cells = judge_cells(command, path, judge)
    matrix = matrix_of(run, {key: cell(found, max_failed=command.max_failed) for key, found in cells.items()})
    facts = facts_of(judge, cells)
    matrix.write(
        path / MATRIX_FILE,
        stream=run.config.stream.name,
        method=run.config.method.name,
        backbone=run.config.backbone.name,
        seed=run.config.seed,
        extra=facts,
    )
    if run.mlflow_id is not None:
        record_reading(run.config.tracking, path.parent, run.mlflow_id, "judged", matrix, facts)
    show(command, path, matrix, facts)
    return 0


def judge_cells(command: Judgement, path: Path, judge: Judge) -> Cells:
    """The verdicts of every cell of the matrix."""
    exchanges = dict(cells_of(path, command.limit))
    cache = VerdictCache(command.cache or path.parent / CACHE_FILE)
    everything = [exchange for found in exchanges.values() for exchange in found]
    with Progress(transient=True) as progress:
        bar = progress.add_task("judging", total=len(everything))
        verdicts = iter(judged(judge, everything, cache, lambda done: progress.update(bar, completed=done)))
    return {key: [next(verdicts) for _ in found] for key, found in exchanges.items()}


def cells_of(path: Path, limit: int | None) -> Iterator[tuple[tuple[str, str], list[Exchange]]]:
    """(after, task) and its replies, in the order of the predictions' files; raises `ConfigError` without any."""
    files = sorted((path / "predictions").glob("*.parquet"))
    if not files:
        raise ConfigError(f"{path} holds no predictions to judge; judge the folder of a finished run.")
    for file in files:
        columns = ["after", "task", "prompt", "prediction", "answers", "metric"]
        cells: dict[tuple[str, str], list[Exchange]] = {}
        for row in pq.read_table(file, columns=columns).to_pylist():
            found = cells.setdefault((row["after"], row["task"]), [])
            if limit is None or len(found) < limit:
                found.append(
                    Exchange(
                        question=row["prompt"],
                        answers=tuple(row["answers"]),
                        reply=row["prediction"],
                        box=row["metric"] == "iou",
                    )
                )
        yield from cells.items()


def matrix_of(run: FinishedRun, cells: dict[tuple[str, str], float | None]) -> ScoreMatrix:
    """The run's matrix with the judge's cells in place of the scores."""
    tasks = run.matrix.tasks
    rows = [(after, {task: cells.get((after, task)) for task in tasks}) for after in run.matrix.after]
    return ScoreMatrix.from_scores(tasks, rows)


def facts_of(judge: Judge, cells: Cells) -> dict[str, object]:
    """What a reader needs to trust or distrust the figures."""
    verdicts = [verdict for found in cells.values() for verdict in found]
    return {
        "judge": judge.identity,
        "judged": len(verdicts),
        "failed": sum(verdict.score is None for verdict in verdicts),
        "tokens": sum(verdict.tokens for verdict in verdicts),
    }


def show(command: Judgement, path: Path, matrix: ScoreMatrix, facts: dict[str, object]) -> None:
    """The judged matrix, and what to think of it."""
    console = Console()
    console.print_matrix(matrix)
    console.print_outcome({**{name: str(value) for name, value in facts.items()}, "written": str(path / MATRIX_FILE)})
    if WEAKNESS[command.judge.kind]:
        print(f"Read it with care: {WEAKNESS[command.judge.kind]}")


if __name__ == "__main__":
    sys.exit(guarded(main))
