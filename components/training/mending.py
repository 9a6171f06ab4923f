"""A run's folder against itself: predictions, matrices and general scores must agree, and what does not is mended.

The predictions are the source: the matrices and general.json are computed from them. A file of predictions that is not
what it was is answered again by the workers, from the checkpoint of its task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from components.core.errors import DataError, LittoralError
from components.core.events import EventHandler, Note
from components.core.files import file_sha256, write_json
from components.core.location import Place, name_inside
from components.core.lock import sole_user
from components.core.reading import ODD, read_object, understood
from components.core.run_files import FINISHED_FILE, KEPT_CHECKPOINTS, STATE_FILE
from components.data.suite import Suite
from components.evaluation.decisions import DECISIONS_FILE, Decisions
from components.evaluation.general import GENERAL_FILE, GeneralScores
from components.evaluation.manifest import MANIFEST_FILE, digests
from components.evaluation.matrix import MATRIX_FILE, ZERO_SHOT, ScoreMatrix
from components.evaluation.matrix_rows import VARIANTS, MatrixRow, variant_file
from components.evaluation.predictions import Prediction, by_task, mean_score, predictions_file, read_predictions
from components.evaluation.suite_figures import figures
from components.metrics.captions import MEAN
from components.training.plan import Again, Plan
from components.training.restoring import newest_whole
from components.training.row_files import captions_file, matrices_of, write_matrix
from components.training.stream_state import StreamState

SAME = 1e-6  # of scores 0..100: as near as two ways of adding up come
_SCORES = ("task", "score", *VARIANTS.values())


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the matrix as it should be there."""

    learned: int
    after: str
    due: Mapping[str, int]  # task -> number of predictions

    @property
    def folder(self) -> str:
        """The name of its checkpoint."""
        return f"{self.learned:02d}-{self.after}"


@dataclass(kw_only=True)
class Damage:
    """What is wrong in a run's folder, and what has to be answered again for it."""

    told: list[str] = field(default_factory=list[str])
    rows: list[MatrixRow] = field(default_factory=list["MatrixRow"])  # as they should be
    matrix: bool = False  # matrices differ from `rows`
    general: GeneralScores | None = None  # to be written
    again: Again = field(default_factory=Again)
    remove: list[Place] = field(default_factory=list["Place"])  # broken, and made anew by itself

    def __bool__(self) -> bool:
        return bool(self.told)


def mend(plan: Plan, at: StreamState | None, handle: EventHandler) -> Plan:
    """Mend the folder of a run that goes on at `at`; the plan then says what its workers have to answer again."""
    if plan.origin is not None:  # its first rows, and their predictions, are of another run
        return plan
    if at is None:  # it begins: what an earlier beginning learned is no result of this one
        for path in _matrix_files(plan):
            path.unlink(missing_ok=True)
        return plan
    # What was awaited from a scorer counts as not scored yet, and is taken up.
    damage = find_damage(plan, learned=at.index - at.awaited, rows=at.rows)
    _mend_files(plan, damage)
    _tell(damage, handle)
    return replace(plan, again=damage.again)


def mend_finished(plan: Plan, handle: EventHandler) -> bool:
    """Whether a finished run's folder is whole, or could be mended without answering anything again.

    Otherwise the run has to go on, and is no longer marked as finished. Raises `DataError` where nothing helps.
    """
    learned = len(plan.schedule)
    if plan.origin is not None or not (find_damage(plan, learned=learned) or _odd_marker(plan)):
        return True
    with sole_user(plan.run_dir, f"run {plan.run_dir.name}"):
        last = newest_whole(plan)
        damage = find_damage(plan, learned=learned, rows=last.rows if last and last.index == learned else None)
        for number in damage.again.rows:
            kept = next(
                plan.run_dir / KEPT_CHECKPOINTS / row.folder for row in expected_rows(plan) if row.learned == number
            )
            if number and not (kept / STATE_FILE).is_file():
                raise DataError(f"{damage.told[0]}, but {kept} is gone; restore one of them from a copy.")
        if damage.again != Again():
            (plan.run_dir / FINISHED_FILE).unlink()
            return False  # `mend` tells
        _tell(damage, handle)
        _mend_files(plan, damage)
        if wrong := _odd_marker(plan):
            handle(Note(text=f"{FINISHED_FILE} of run {plan.run_dir.name} {wrong}; written anew", warning=True))
            ended = datetime.fromtimestamp((plan.run_dir / MATRIX_FILE).stat().st_mtime).astimezone()
            write_json(plan.run_dir / FINISHED_FILE, {"finished": ended.isoformat()})
    return True


def _odd_marker(plan: Plan) -> str:
    """What is wrong with the mark of a finished run."""
    try:
        datetime.fromisoformat(read_object(plan.run_dir / FINISHED_FILE, DataError, "")["finished"])
    except (DataError, *ODD):
        return "is damaged"
    return ""


def _tell(damage: Damage, handle: EventHandler) -> None:
    for text in damage.told:
        handle(Note(text=text, warning=True))


def _matrix_files(plan: Plan) -> list[Place]:
    return [plan.run_dir / MATRIX_FILE, *(variant_file(plan.run_dir, name) for name in VARIANTS)]


def _mend_files(plan: Plan, damage: Damage) -> None:
    for path in damage.remove:
        path.unlink(missing_ok=True)
    if damage.matrix and damage.rows:
        write_matrix(plan, damage.rows)
    if damage.general is not None:
        average = matrices_of(plan, damage.rows)[0].summary().get("final_average") if damage.rows else None
        damage.general.write(plan.run_dir / GENERAL_FILE, average)


def expected_rows(plan: Plan) -> Iterator[Row]:
    """The rows of a finished run, in their order."""
    evaluation, tasks = plan.config.evaluation, plan.stream.tasks
    due = {task.name: min(task.test.num_rows, evaluation.limit or task.test.num_rows) for task in tasks}
    if evaluation.zero_shot:
        yield Row(learned=0, after=ZERO_SHOT, due=due)
    for number, scheduled in enumerate(plan.schedule, start=1):
        everything = evaluation.unseen or plan.stream.mixture is not None
        seen = [task.name for task in tasks][: None if everything else number]
        rows = {name: due[name] for name in seen} if scheduled.scored else {}
        yield Row(learned=number, after=scheduled.task.name, due=rows)


def find_damage(plan: Plan, *, learned: int, rows: list[MatrixRow] | None = None) -> Damage:
    """Compare all that is there after `learned` tasks; reads only. `rows`: what a checkpoint says, None: unknown."""
    damage = Damage()
    known, again_rows = _digests(plan, damage), []
    stored = {row.after: row for row in rows or ()}
    matrix = _stored(plan.run_dir / MATRIX_FILE) or {}
    for row in expected_rows(plan):
        if row.learned > learned:  # scored later than the checkpoint: it is taken up again only if it is what it was
            later = predictions_file(plan.run_dir, row.learned, row.after)
            damage.remove += [later] if _tables(plan, later, row.due, known)[1] else []
            continue
        found, wrong = _row(plan, row, known)
        told = stored.get(row.after)
        path = predictions_file(plan.run_dir, row.learned, row.after)
        if found is not None and path_key(plan, path) not in known and row.due:
            # Without a digest a second witness decides: a checkpoint's rows, else the matrix itself.
            witness = told.scores if told is not None else matrix.get(row.after)
            if witness is not None and not _same(witness, found.scores):
                wrong, found = "has other scores than the score matrix", None
        if wrong:
            damage.told.append(f"{path_key(plan, path)} of run {plan.run_dir.name} {wrong}; it is answered again")
            again_rows.append(row.learned)
            # Else its cells could be taken up from there: see training/kept_cells.py.
            damage.remove += [path, captions_file(plan.run_dir, row.learned, row.after)]
        damage.rows.append(told or found or MatrixRow(after=row.after, scores=dict.fromkeys(plan.stream.task_names)))
    _check_matrices(plan, damage)
    again_suites = _check_general(plan, damage, learned, known)
    decisions = _check_decisions(plan, damage)
    damage.again = Again(rows=tuple(again_rows), suites=tuple(again_suites), decisions=decisions)
    return damage


def path_key(plan: Plan, path: Place) -> str:
    """How the manifest names a file."""
    return name_inside(path, plan.run_dir)


def _digests(plan: Plan, damage: Damage) -> dict[str, str]:
    try:
        return digests(plan.run_dir)
    except DataError as error:
        damage.told.append(f"{error.args[0].partition(';')[0]}; predictions are checked without it")
        damage.remove.append(plan.run_dir / MANIFEST_FILE)
        return {}


def _row(plan: Plan, row: Row, known: Mapping[str, str]) -> tuple[MatrixRow | None, str]:
    """The row that its predictions give, or what is wrong with them."""
    if not row.due:
        return MatrixRow(after=row.after, scores=dict.fromkeys(plan.stream.task_names)), ""
    path = predictions_file(plan.run_dir, row.learned, row.after)
    tables, wrong = _tables(plan, path, row.due, known)
    captions, wrong_too = _captions(plan, row, known)
    if wrong or wrong_too:
        return None, wrong or wrong_too
    names = plan.stream.task_names
    means = {column: {name: mean_score(tables.get(name, ()), column) for name in names} for column in _SCORES[1:]}
    variants = {
        name: means[column] for name, column in VARIANTS.items() if any(v is not None for v in means[column].values())
    }
    if captions:
        variants["compat"] = {**variants.get("compat", dict.fromkeys(names)), **captions}
    return MatrixRow(after=row.after, scores=means["score"], variants=variants), ""


def _tables(
    plan: Plan, path: Place, due: Mapping[str, int], known: Mapping[str, str]
) -> tuple[dict[str, list[Prediction]], str]:
    """A file of predictions by task, or what is wrong with it."""
    try:
        if not path.is_file():
            return {}, "is missing"
        if file_sha256(path) != known.get(path_key(plan, path), file_sha256(path)):
            return {}, "differs from its checksum"
        tables = by_task(read_predictions(path, _SCORES))
    except (DataError, OSError) as error:
        return {}, f"is damaged ({type(error).__name__})" if isinstance(error, OSError) else "cannot be read"
    counts = {task: len(found) for task, found in tables.items()}
    if counts != dict(due):
        return {}, f"has {sum(counts.values())} predictions and not {sum(due.values())} of the tasks that are due"
    return tables, ""


def _captions(plan: Plan, row: Row, known: Mapping[str, str]) -> tuple[dict[str, float], str]:
    path = captions_file(plan.run_dir, row.learned, row.after)
    if not path.is_file():
        return {}, "lacks its figures of captions" if path_key(plan, path) in known else ""
    try:
        if file_sha256(path) != known.get(path_key(plan, path), file_sha256(path)):
            return {}, "has figures of captions that differ from their checksum"
        content = read_object(path, DataError, "")
        with understood(path, DataError, ""):
            return {task: float(found[MEAN]) for task, found in content.items() if MEAN in found}, ""
    except (LittoralError, OSError):
        return {}, "has figures of captions that cannot be read"


def _stored(path: Place) -> dict[str, dict[str, float | None]] | None:
    """A matrix's rows by what they come after; None where it is missing or damaged."""
    try:
        matrix = ScoreMatrix.read(path)
    except LittoralError:
        return None
    return {
        after: dict(zip(matrix.tasks, row, strict=True)) for after, row in zip(matrix.after, matrix.rows, strict=True)
    }


def _same(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> bool:
    def equal(a: float | None, b: float | None) -> bool:
        return a is b if a is None or b is None else abs(a - b) <= SAME

    return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())


def _check_matrices(plan: Plan, damage: Damage) -> None:
    """Whether each matrix has the rows that it should. What was scored after the checkpoint is scored again anyway."""
    if not damage.rows:
        damage.remove += _matrix_files(plan)
        return
    wrong: list[str] = []
    main, variants = matrices_of(plan, damage.rows)
    files = {plan.run_dir / MATRIX_FILE: main} | {
        variant_file(plan.run_dir, name): one for name, one in variants.items()
    }
    for path, matrix in files.items():
        wanted = {
            after: dict(zip(matrix.tasks, row, strict=True))
            for after, row in zip(matrix.after, matrix.rows, strict=True)
        }
        there = _stored(path) or {}
        damage.matrix |= len(there) > len(wanted)
        if [*there][: len(wanted)] != [*wanted] or not all(_same(there[after], wanted[after]) for after in wanted):
            wrong.append(path.name)
    if wrong:
        damage.matrix = True
        damage.told.append(
            f"{', '.join(wrong)} of run {plan.run_dir.name}: not what the predictions give; written anew"
        )


def _check_general(plan: Plan, damage: Damage, learned: int, known: Mapping[str, str]) -> list[tuple[int, str]]:
    """Suites that have to be answered again, by what was learned before; others are put together anew."""
    if not plan.suites or learned < 0:  # the first scores are awaited still
        return []
    file, last = plan.run_dir / GENERAL_FILE, len(plan.schedule)
    try:
        stored, wrong = GeneralScores.read(file), "" if file.is_file() else "is missing"
    except DataError:
        stored, wrong = GeneralScores(), "cannot be read"
    found, again = GeneralScores(), list[tuple[int, str]]()
    for number in range(learned + 1):
        after = plan.stream.steps[number - 1] if number else ZERO_SHOT
        if number not in (0, last) and not plan.config.evaluation.suites_after_every_task:
            continue
        for suite in plan.suites:
            figured = _suite(plan, suite, number, after, known)
            if figured is None:
                again.append((number, suite.name))
                path = predictions_file(plan.run_dir, number, after, suite=suite.name)
                name = path_key(plan, path)
                damage.told.append(f"{name} of run {plan.run_dir.name} is missing or damaged; it is answered again")
                damage.remove.append(path)
            else:
                found = found.plus(number, after, suite.name, figured)
                if not wrong and not _same(figured, stored.figures.get(number, {}).get(suite.name, {})):
                    wrong = "differs from its predictions"
    if wrong or again:
        damage.general = found
    if wrong:
        damage.told.append(f"{GENERAL_FILE} of run {plan.run_dir.name} {wrong}; written anew")
    return again


def _suite(plan: Plan, suite: Suite, learned: int, after: str, known: Mapping[str, str]) -> dict[str, float] | None:
    path = predictions_file(plan.run_dir, learned, after, suite=suite.name)
    if _tables(plan, path, {suite.name: suite.test.num_rows}, known)[1]:
        return None
    try:
        return figures(suite.scoring, [*read_predictions(path)])
    except (LittoralError, ValueError, KeyError):
        return None


def _check_decisions(plan: Plan, damage: Damage) -> bool:
    """Whether decisions.json has to be written anew from the method itself."""
    path = plan.run_dir / DECISIONS_FILE
    try:
        served = Decisions.read(path).served
    except DataError:
        served, wrong = {}, "cannot be read"
    else:
        expected = {row.after: row.served for row in damage.rows if row.served}
        rows = {after: {task: one.rows for task, one in row.items()} for after, row in served.items()}
        told = {after: {task: one["rows"] for task, one in row.items()} for after, row in expected.items()}
        wrong = "differs from the checkpoint" if any(rows.get(after) != told[after] for after in told) else ""
    if wrong:
        damage.told.append(f"{DECISIONS_FILE} of run {plan.run_dir.name} {wrong}; written anew")
        damage.remove.append(path)
    return bool(wrong)
