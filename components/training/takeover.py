"""What a run copies, at its start, from the run that it continues from: checkpoint, scores, replies and decisions.

Scores keep their numbers; their files say how many rows were taken over. Cells of tasks that the new stream has not are
left out, those of tasks that the old one had not are empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from components.core.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from components.core.errors import CheckpointError, ConfigError
from components.core.files import make_folder, remove_folder, whole_folder
from components.core.location import Place
from components.core.reading import read_object
from components.core.run_files import STATE_FILE
from components.core.tensor_store import TensorStore
from components.evaluation.decisions import DECISIONS_FILE, Decisions
from components.evaluation.general import GENERAL_FILE, GeneralScores
from components.evaluation.manifest import is_as_noted, note_digests
from components.evaluation.matrix import MATRIX_FILE, ZERO_SHOT, ScoreMatrix
from components.evaluation.matrix_rows import VARIANTS, MatrixRow, variant_file
from components.evaluation.predictions import (
    predictions_file,
    read_predictions,
    write_predictions,
)
from components.models.source import model_source
from components.training.checkpointing import METHOD, method_state
from components.training.lineage import Origin
from components.training.plan import Plan
from components.training.row_files import captions_file, write_captions, write_matrix
from components.training.stream_state import StreamState
from components.training.unlearn import forget

ADVICE = "continue from another task with --at-task"


def take_over(plan: Plan) -> None:
    """Copy into the run's folder what it needs of its origin; a second call, after one that was killed, begins anew.

    Raises `CheckpointError` for a damaged checkpoint and for one of other frozen weights, `ConfigError` or `DataError`
    for other files that are damaged or gone.
    """
    assert plan.origin is not None
    source = plan.origin.place
    if not source.is_dir():
        raise ConfigError(f"{source}, which run {plan.config.run_id} continues from, is not there any more.")
    require_its_weights(plan)
    taken = read_checkpoint(plan.origin.checkpoint_there())  # before anything is written: raises where it is damaged
    rows = rows_taken(source, plan.origin, plan.stream.task_names)
    make_folder(plan.run_dir)
    _copy_replies(source, plan, rows)
    _copy_general(source, plan)
    _copy_decisions(source, plan, rows)
    _copy_checkpoint(taken, plan, rows)
    if rows:
        write_matrix(plan, rows)
    plan.origin.write(plan.run_dir)


def require_its_weights(plan: Plan) -> None:
    """Raise `CheckpointError` where the tasks taken over were learned with other frozen weights than this run has."""
    assert plan.origin is not None
    path = plan.origin.checkpoint_there() / STATE_FILE
    if read_object(path, CheckpointError, ADVICE).get("backbone") != model_source(plan.config.backbone).fingerprint():
        raise CheckpointError(
            f"run {plan.origin.run} learned with other weights than {plan.config.backbone.name!r} has now; give back "
            "the model that it had."
        )


def rows_taken(source: Place, origin: Origin, tasks: Sequence[str]) -> list[MatrixRow]:
    """The rows of the score matrix until the task continued from, over the tasks of the new stream."""
    matrix, decisions = ScoreMatrix.read(source / MATRIX_FILE), Decisions.read(source / DECISIONS_FILE)
    files = {name: variant_file(source, name) for name in VARIANTS}
    variants = {name: ScoreMatrix.read(path) for name, path in files.items() if path.is_file()}
    rows: list[MatrixRow] = []
    taken = {ZERO_SHOT, *origin.tasks[: origin.rows_of_tasks]}
    for after in [after for after in matrix.after if after in taken]:
        cells = {name: _cells(other, after, tasks) for name, other in variants.items()}
        served = {task: asdict(one) for task, one in decisions.served.get(after, {}).items() if task in tasks}
        rows.append(
            MatrixRow(
                after=after,
                scores=_cells(matrix, after, tasks),
                variants={name: row for name, row in cells.items() if any(cell is not None for cell in row.values())},
                served=served,
            )
        )
    return rows


def _cells(matrix: ScoreMatrix, after: str, tasks: Sequence[str]) -> dict[str, float | None]:
    """A row over other tasks; empty where the matrix has none of that name."""
    row = dict(zip(matrix.tasks, matrix.rows[matrix.after.index(after)], strict=True)) if after in matrix.after else {}
    return {task: row.get(task) for task in tasks}


def _copy_checkpoint(taken: Checkpoint, plan: Plan, rows: list[MatrixRow]) -> None:
    """The checkpoint as one of the new run: its stream state says where this one begins."""
    assert plan.origin is not None
    origin, number = plan.origin, plan.origin.at_task
    target = origin.checkpoint_in(plan.run_dir)
    begin = StreamState(index=number, rows=rows)
    if origin.score_again:
        begin = replace(begin, index=number - 1, learned=True)
    kept = method_state(taken)
    if origin.unlearned is not None:
        kept = forget(taken, plan.config.method, origin.unlearned.task, seed=plan.config.seed).state
    state = taken.state | {
        "method_structure": kept.structure,
        "config": plan.config.to_json(),
        "stream": plan.stream.digest,
        "stream_name": plan.stream.name,
        "tasks": plan.stream.task_names,
        "stream_state": begin.to_json(),
    }
    state.pop("cursor", None)  # of versions before 0.2
    remove_folder(target, STATE_FILE)
    shared = {METHOD: TensorStore(plan.run_dir, METHOD).put(kept.tensors)}
    with whole_folder(target, durable=True, last=STATE_FILE) as partial:
        write_checkpoint(partial, state, {}, shared)


def _names(plan: Plan, rows: list[MatrixRow]) -> Iterator[tuple[int, str]]:
    """Tasks learned before each row, and what it comes after."""
    first = 0 if rows and rows[0].after == ZERO_SHOT else 1
    yield from ((first + number, row.after) for number, row in enumerate(rows))


def _copy_replies(source: Place, plan: Plan, rows: list[MatrixRow]) -> None:
    tasks = set(plan.stream.task_names)
    assert plan.origin is not None
    for learned, after in _names(plan, rows):
        there = plan.origin.number_there(after)
        replies, target = predictions_file(source, there, after), predictions_file(plan.run_dir, learned, after)
        write_predictions(target, [one for one in read_predictions(replies) if one.task in tasks])
        if is_as_noted(source, replies):  # so that the new run may keep them: see `KeptReplies`
            note_digests(plan.run_dir, [target])
        captions = captions_file(source, there, after)
        if captions.is_file():
            found = read_object(captions, ConfigError, ADVICE)
            write_captions(
                captions_file(plan.run_dir, learned, after),
                {task: found[task] for task in found if task in tasks},
            )


def _copy_general(source: Place, plan: Plan) -> None:
    """What general suites scored until then, with their replies."""
    assert plan.origin is not None
    scores = GeneralScores.read(source / GENERAL_FILE)
    taken = GeneralScores()
    numbers = {after: number for number, after in enumerate((ZERO_SHOT, *plan.origin.tasks))}
    for there in sorted(scores.figures):
        after = scores.after[there]
        learned = numbers.get(after, len(numbers))
        if learned > plan.origin.rows_of_tasks:
            continue
        for suite, found in scores.figures[there].items():
            taken = taken.plus(learned, after, suite, dict(found))
            replies = predictions_file(source, there, after, suite=suite)
            if replies.is_file():
                target = predictions_file(plan.run_dir, learned, after, suite=suite)
                write_predictions(target, list(read_predictions(replies)))
                if is_as_noted(source, replies):
                    note_digests(plan.run_dir, [target])
    if taken.figures:
        taken.write(plan.run_dir / GENERAL_FILE)


def _copy_decisions(source: Place, plan: Plan, rows: list[MatrixRow]) -> None:
    assert plan.origin is not None
    decided = Decisions.read(source / DECISIONS_FILE)
    known, after = set(plan.origin.tasks), {row.after for row in rows}
    taken = Decisions(
        tasks={task: what for task, what in decided.tasks.items() if task in known},
        served={name: served for name, served in decided.served.items() if name in after},
    )
    if taken:
        taken.write(plan.run_dir / DECISIONS_FILE)
