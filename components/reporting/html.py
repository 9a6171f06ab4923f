"""One HTML page over finished runs for each order of their tasks, and beside it tables for papers and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.console.tables import markdown
from components.core import files as whole_files
from components.core.errors import ConfigError
from components.reporting.export import cell_rows, csv_text, figure_rows, item_rows, latex
from components.reporting.groups import Line, Table, grouped, headline_first, named, orders_of
from components.reporting.page import page
from components.reporting.replies import replies_of
from components.runs.results import FinishedRun, item_scores
from components.training.lineage import opened

PAGE = "report.html"
CELLS = ["run", "method", "seed", "variant", "after", "task", "score"]
FIGURES = ["run", "method", "seed", "figure", "value"]
ITEMS = ["run", "method", "seed", "after", "task", "row", "sample_id", "score", "oracle_score", "repaired_score"]


def write_html(
    runs: Sequence[FinishedRun],
    out_dir: Path,
    *,
    overview: Table,
    generals: Sequence[Table],
    compared: tuple[Line, list[Line], list[str]] | None = None,
) -> list[Path]:
    """Write the pages and their files into `out_dir`, replacing those of an earlier call; raises `ConfigError`.

    `overview` and `generals` are the tables of report.py, `compared` what --baseline says.
    """
    groups = named(grouped(runs))
    replies = {str(run.config.run_id): replies_of(run) for run in runs}
    if len(replies) < len(runs):
        raise ConfigError(
            "two of the runs have the same run id; the page identifies runs by it, so give only one of them."
        )
    scores = {str(run.config.run_id): item_scores(run.path) for run in runs}
    pages = {order: PAGE if not number else f"report-{number + 1}.html" for number, order in enumerate(orders_of(runs))}
    files = {
        "table.md": "\n".join(markdown(*overview)) + "\n",
        "table.tex": "\n".join(latex(*overview)) + "\n",
        "cells.csv": csv_text(CELLS, cell_rows(groups)),
        "figures.csv": csv_text(FIGURES, figure_rows(groups)),
        "items.csv": csv_text(ITEMS, item_rows(groups, scores, replies)),
    }
    texts: dict[str, str] = {}
    for order, name in pages.items():
        own = [run for run in runs if tuple(run.matrix.tasks) == order]
        replied = any(replies[str(run.config.run_id)] for run in own)
        config = own[0].config
        texts[name] = page(
            named(grouped(own)),
            replies,
            scores,
            opened(config.stream, own[0].origin, scored=config.evaluation.split) if replied else None,
            overview=headline_first(*overview),
            generals=generals,
            compared=compared,
            files=list(files),
            orders=[(other, ", ".join(tasks)) for tasks, other in pages.items() if other != name],
        )
    return [write_text(out_dir / name, content) for name, content in (texts | files).items()]


def write_text(path: Path, text: str) -> Path:
    """The file, in a folder that is made where it is missing; raises `ConfigError` when it cannot be written."""
    try:
        whole_files.write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); give another folder to --html.") from error
    return path
