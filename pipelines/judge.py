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
from components.core.location import Place, folder_at, place
from components.core.options import Count, Share, check_options
from components.core.visible import print_text
from components.evaluation.matrix import ScoreMatrix
from components.evaluation.matrix_rows import variant_file
from components.judging.backends import WEAKNESS, JudgeConfig
from components.judging.cells import cells_of, facts_of, judge_cells, matrix_of
from components.judging.protocol import VerdictCache, cell
from components.runs.results import read_run
from components.tracking.store import record_variant
from pipelines.littoral import read_options

CACHE_FILE = "judge_cache.jsonl"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Which run is judged, and by whom."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a finished run (STORAGE/RUN-ID), a path or a URI."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    limit: Count | None = None
    """Judge only the first replies of every cell."""
    max_failed: Share = 0.02
    """Share of a cell's replies that may stay without a grade; with more, the cell is missing. None counts as zero."""
    cache: str | None = None
    """File of verdicts, or at a URI a folder of them; default: judge_cache.jsonl beside the run's folder."""
    debug: bool = False
    """A traceback instead of one sentence."""

    def __post_init__(self) -> None:
        check_options(self, "judge")


def main(arguments: Sequence[str]) -> int:
    """Judge every reply, write the matrix, show it."""
    command = read_options(Judgement, arguments, name="judge", description=(__doc__ or "").split("\n\n")[0])
    path = folder_at(command.run)
    run, judge = read_run(path), command.judge.build()
    exchanges = cells_of(path, command.limit)
    distinct = {exchange for found in exchanges.values() for exchange in found}
    with Progress(transient=True) as progress:
        bar = progress.add_task("judging", total=sum(map(len, exchanges.values())))
        cache = VerdictCache(place(command.cache) if command.cache else cache_beside(path))
        cells = judge_cells(judge, exchanges, cache, lambda done: progress.update(bar, completed=done))
    matrix = matrix_of(run.matrix, {key: cell(found, max_failed=command.max_failed) for key, found in cells.items()})
    facts = facts_of(judge, cells, len(distinct))
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


def cache_beside(run_dir: Place) -> Place:
    """Where verdicts are kept by default; in a store it is a folder, which is not to be taken for a run."""
    return run_dir.parent / (CACHE_FILE if isinstance(run_dir, Path) else f".cache/{CACHE_FILE}")


def show(command: Judgement, path: Place, matrix: ScoreMatrix, facts: dict[str, object]) -> None:
    """The judged matrix, and what to think of it."""
    console = Console()
    console.print_matrix(matrix)
    told = {name: str(value) for name, value in facts.items()}
    console.print_outcome({**told, "written": str(variant_file(path, "judged"))})
    if WEAKNESS[command.judge.kind]:
        print_text(f"Read it with care: {WEAKNESS[command.judge.kind]}")
