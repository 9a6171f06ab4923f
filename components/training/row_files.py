"""The files that a run's folder gets with every row of the score matrix, beside the predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from components.core.files import write_text
from components.core.location import AnyPlace, Place
from components.evaluation.decisions import DECISIONS_FILE, Decisions, Served, served_from_json
from components.evaluation.forgetting import SPLITS, split_if_known
from components.evaluation.matrix import MATRIX_FILE, ZERO_SHOT, ScoreMatrix
from components.evaluation.matrix_rows import VARIANTS, MatrixRow, matrix_of, variant_file
from components.evaluation.predictions import PREDICTIONS_FOLDER, Prediction, by_task
from components.evaluation.replies import noted
from components.methods.base import Method
from components.training.plan import Plan


def captions_file(run_dir: AnyPlace, learned: int, after: str) -> AnyPlace:
    """Where the figures of a row's caption tasks are."""
    return run_dir / PREDICTIONS_FOLDER / f"{learned:02d}-{after}.captions.json"


def write_captions(path: Place, figures: Mapping[str, Mapping[str, float]]) -> None:
    """BLEU, METEOR, ROUGE-L and CIDEr of caption tasks, times 100, by task; a reader sees the whole file or none."""
    write_text(path, json.dumps(figures, indent=2) + "\n")


def matrices_of(plan: Plan, rows: Sequence[MatrixRow]) -> tuple[ScoreMatrix, dict[str, ScoreMatrix]]:
    """The score matrix of these rows, and its variants by name."""
    tasks, points = plan.stream.task_names, plan.stream.points
    variants = [name for name in VARIANTS if any(name in row.variants for row in rows)]
    return matrix_of(tasks, rows, points=points), {
        name: matrix_of(tasks, rows, name, points=points) for name in variants
    }


def write_matrix(plan: Plan, rows: Sequence[MatrixRow]) -> None:
    """Replace the matrix files by the rows so far, each atomically; `score_matrix.json` last."""
    config = plan.config
    facts: dict[str, object] = {"scored_on": config.evaluation.split, **noted(config.evaluation.replies)}
    if plan.stream.mixture is not None:
        facts["mixture"] = plan.stream.mixture.to_json()
    if plan.origin is not None:
        taken = plan.origin.rows_of_tasks + any(row.after == ZERO_SHOT for row in rows)
        facts["taken_over"] = {"rows": taken, "run": plan.origin.run, "at_task": plan.origin.at_task}
    matrix, variants = matrices_of(plan, rows)
    splits = {
        name: {"forgetting_split": split_if_known(matrix, {name: variants[name]})}
        for name in SPLITS
        if name in variants
    }
    files = {variant_file(plan.run_dir, name): (other, splits.get(name)) for name, other in variants.items()}
    for path, (content, extra) in {**files, plan.run_dir / MATRIX_FILE: (matrix, None)}.items():
        content.write(
            path,
            stream=plan.stream.name,
            method=config.method.name,
            backbone=config.backbone.name,
            seed=config.seed,
            extra={**facts, **(extra or {})},
        )


def write_decisions(plan: Plan, rows: Sequence[MatrixRow], method: Method) -> Decisions:
    """Replace decisions.json, atomically; no file for a method that decides nothing."""
    served = served_from_json({row.after: row.served for row in rows if row.served})
    decisions = Decisions(tasks=method.decisions(), served=served)
    if decisions:
        decisions.write(plan.run_dir / DECISIONS_FILE)
    return decisions


def served_by(table: Sequence[Prediction], owner: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """Which task's parameters answered each task's rows; empty for a method that does not route."""
    return {
        task: asdict(Served.of(owner(task), [row.routed_to for row in rows], [row.matched for row in rows]))
        for task, rows in by_task(table).items()
        if any(row.routed_to is not None for row in rows)
    }
