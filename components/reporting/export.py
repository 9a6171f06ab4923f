"""The report's figures as files beside the page: tables for papers (Markdown, LaTeX), the rest as CSV.

Replies stay in the runs' Parquet files: a CSV cell that begins with "=" is a formula to a spreadsheet.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

from components.evaluation.forgetting import SPLITS, split_if_known
from components.evaluation.predictions import Prediction
from components.reporting.facts import variants_of
from components.reporting.groups import Groups, Line
from components.runs.results import FinishedRun
from components.statistics.contributions import ItemScores

_LATEX = str.maketrans(
    {letter: rf"\{letter}" for letter in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "→": r"$\rightarrow$"}
)


def latex(header: Line, lines: Sequence[Line]) -> Line:
    """The lines of a LaTeX tabular with booktabs rules; text is left-aligned, figures are right-aligned."""
    rows = [" & ".join(map(latex_text, line)) + r" \\" for line in (header, *lines)]
    columns = "l" + "r" * (len(header) - 1)
    return [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]


def latex_text(cell: str) -> str:
    """A cell's text with LaTeX's special characters escaped; names in backticks become typewriter text."""
    return re.sub("`([^`]+)`", r"\\texttt{\1}", cell.replace("->", "→").translate(_LATEX))


def csv_text(header: Line, rows: Iterable[Sequence[object]]) -> str:
    """CSV with a header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def cell_rows(groups: Groups) -> Iterable[list[object]]:
    """run, method, seed, variant, after, task, score: every measured cell of every matrix, 0..100."""
    for run in _runs(groups):
        for variant, matrix in {"scores": run.matrix, **variants_of(run)}.items():
            for after, row in zip(matrix.after, matrix.rows, strict=True):
                for task, cell in zip(matrix.tasks, row, strict=True):
                    if cell is not None:
                        yield [*_who(run), variant, after, task, cell]


def figure_rows(groups: Groups) -> Iterable[list[object]]:
    """run, method, seed, figure, value: summary figures, forgetting's parts, general ability and costs."""
    for run in _runs(groups):
        summary = run.matrix.summary()
        cost = {} if run.cost is None else {f"cost_{name}": value for name, value in vars(run.cost).items()}
        general = {
            f"general_{name}": value for name, value in run.general.summary(summary.get("final_average")).items()
        }
        variants = variants_of(run)
        split = split_if_known(run.matrix, {name: variants.get(name) for name in SPLITS})
        for name, value in {**summary, **split, **general, **cost}.items():
            yield [*_who(run), name, value]


def item_rows(
    groups: Groups, items: Mapping[str, ItemScores], replies: Mapping[str, Sequence[Prediction]]
) -> Iterable[list[object]]:
    """run, method, seed, after, task, row, sample id, score, oracle score, repaired score (0..1) of every test row.

    A record has no sample ids: its rows are numbered in the order of their sample ids.
    """
    for run in _runs(groups):
        run_id = str(run.config.run_id)
        named: dict[tuple[str, str], list[Prediction]] = {}
        for reply in sorted(replies[run_id], key=lambda one: one.sample_id):
            named.setdefault((reply.after, reply.task), []).append(reply)
        for after, by_task in items[run_id].items():
            for task, scores in by_task.items():
                found = named.get((after, task), [None] * len(scores))
                for number, (score, reply) in enumerate(zip(scores, found, strict=True)):
                    sample_id = "" if reply is None else _name(reply)
                    variants = [None, None] if reply is None else [reply.oracle_score, reply.repaired_score]
                    yield [*_who(run), after, task, number, sample_id, score, *variants]


def _runs(groups: Groups) -> Iterable[FinishedRun]:
    return (run for group in groups.values() for run in group)


def _who(run: FinishedRun) -> list[object]:
    return [run.config.run_id, run.config.method.name, run.config.seed]


def _name(reply: Prediction) -> str:
    """The sample id, quoted if a spreadsheet would take it for a formula."""
    return f"'{reply.sample_id}" if reply.sample_id.startswith(("=", "+", "-", "@", "\t")) else reply.sample_id
