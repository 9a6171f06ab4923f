"""A run's folder: which run it belongs to, how far that run is, and what it has written."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass

from components.core.errors import CheckpointError, ConfigError, StorageError, StreamStopped
from components.core.events import Event, EventHandler, Note
from components.core.files import make_folder, write_json
from components.core.location import Location, Place
from components.core.reading import read_object, understood
from components.core.run_files import CONFIG_FILE, FINISHED_FILE, KEPT_CHECKPOINTS, STATE_FILE
from components.evaluation.general import GENERAL_FILE, GeneralScores
from components.evaluation.matrix import MATRIX_FILE, ScoreMatrix
from components.evaluation.matrix_rows import VARIANTS, variant_file
from components.models.source import model_source
from components.training.config import Json, RunConfig, flatten
from components.training.lengths import Fitted
from components.training.mending import mend_finished
from components.training.plan import Plan
from components.training.same_run import Change, Differences, compare, shown
from components.training.stopping import STOP_FILE
from components.training.takeover import require_its_weights, take_over

DAMAGED = "restore the file from a copy of the run's folder, or use another --run-id"


def tell_log(event: Event) -> None:
    """Warnings to the log, where no console follows."""
    if isinstance(event, Note) and event.warning:
        logging.getLogger("littoral").warning("%s", event.text)


@dataclass(frozen=True, kw_only=True)
class StreamResult:
    """What a finished stream leaves."""

    matrix: ScoreMatrix
    variants: dict[str, ScoreMatrix]  # variants of the scores that were measured: see evaluation/matrix.py
    general: GeneralScores  # of the general suites; empty without any

    @property
    def oracle(self) -> ScoreMatrix | None:
        """With the task known at test time; None unless it was asked for and the method routes."""
        return self.variants.get("oracle")


def is_whole(plan: Plan) -> bool:
    """Whether all tasks are learned and scored, and then all general suites."""
    num_tasks, general = plan.num_tasks, GeneralScores.read(plan.run_dir / GENERAL_FILE)
    return learned_in(plan.run_dir) == num_tasks and all(general.has(num_tasks, suite.name) for suite in plan.suites)


def require_whole(plan: Plan) -> None:
    """Raise `StreamStopped` when the workers ended before the run was whole."""
    if not is_whole(plan):
        learned, num_tasks = learned_in(plan.run_dir), plan.num_tasks
        left = ", before its general suites were scored" if learned == num_tasks else ""
        raise StreamStopped(
            f"run {plan.run_dir.name} was stopped by {plan.run_dir / STOP_FILE} after {learned} of {num_tasks} tasks"
            f"{left}; the same command continues it."
        )


def learned_in(run_dir: Place) -> int:
    """Number of tasks that are learned and scored in a run's folder."""
    path = run_dir / MATRIX_FILE
    return ScoreMatrix.read(path).num_learned if path.is_file() else 0


def finished_result(plan: Plan, handle: EventHandler = tell_log) -> StreamResult | None:
    """The result of a run that has finished and whose folder is whole, or None.

    What is damaged is mended and told to `handle`; where rows have to be answered again for that, the run has not
    finished. Raises `ConfigError` when the folder holds another run.
    """
    if not (plan.run_dir / FINISHED_FILE).is_file():
        return None
    check_run_dir(plan)
    return read_result(plan.run_dir) if mend_finished(plan, handle) else None


def read_result(run_dir: Place) -> StreamResult:
    """The matrices a run has written so far."""
    files = {name: variant_file(run_dir, name) for name in VARIANTS}
    variants = {name: ScoreMatrix.read(path) for name, path in files.items() if path.is_file()}
    general = GeneralScores.read(run_dir / GENERAL_FILE)
    return StreamResult(matrix=ScoreMatrix.read(run_dir / MATRIX_FILE), variants=variants, general=general)


def check_run_dir(plan: Plan) -> None:
    """Raise `ConfigError` when the storage cannot be written or the id is that of another run; writes nothing."""
    refused = _differences(plan).refused
    if refused:
        shortened = {"stream_digest": 12}  # as the plan shows it
        differing = (
            f"{name} = {shown(old)[: shortened.get(name)]}, this command has {shown(new)[: shortened.get(name)]}"
            for name, (old, new) in refused.items()
        )
        raise ConfigError(
            f"run {plan.config.run_id} exists with {'; '.join(differing)}; use the same settings to continue it, or "
            "another --run-id."
        )
    if isinstance(plan.run_dir, Location):
        return  # whoever takes its lock hears whether the store can be written
    existing = next(folder for folder in [plan.run_dir, *plan.run_dir.parents] if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"cannot write to {existing}; choose a writable folder with --storage.")


def changed_execution(plan: Plan) -> dict[str, Change]:
    """Options that only say how the run is carried out and differ from its latest session, with old and new value."""
    return _differences(plan).execution


def _differences(plan: Plan) -> Differences:
    path = plan.run_dir / CONFIG_FILE
    if not path.is_file():
        return Differences(refused={}, execution={})
    stored: dict[str, Json] = read_object(path, ConfigError, DAMAGED)
    # Through the classes, where a setting added since the run began has its default, which changes nothing.
    known: dict[str, Json] = {"rows": _rows(_before_rows_were_kept(plan))}
    with understood(path, ConfigError, DAMAGED):
        old = flatten(known | stored | RunConfig.from_json(stored).to_json())
    return compare(old, flatten(_identity(plan)), also_result=plan.config.method.result_depends_on)


def require_same_weights(plan: Plan) -> None:
    """Raise `CheckpointError` when a task was learned with other frozen weights, which `backbone.name` named then."""
    if plan.origin is not None and not (plan.run_dir / CONFIG_FILE).is_file():
        require_its_weights(plan)
    kept = sorted(plan.run_dir.glob(f"{KEPT_CHECKPOINTS}/*/{STATE_FILE}"), key=str)
    if not kept:
        return  # whatever the first task has reported so far, the workers compare
    name, fingerprint = plan.config.backbone.name, model_source(plan.config.backbone).fingerprint()
    if read_object(kept[-1], CheckpointError, DAMAGED).get("backbone") != fingerprint:
        raise CheckpointError(
            f"run {plan.config.run_id} learned {kept[-1].parent.name} with other weights than {name!r} has now; give "
            "back the model it began with, or use another --run-id."
        )


def claim_run_dir(plan: Plan) -> None:
    """Create the run's folder with its configuration, or check that the existing one is the same run.

    What may change when a run goes on is written there as it is now, because that file continues the run.
    A run that continues from another one copies here what it needs of it (`takeover.py`).
    """
    check_run_dir(plan)
    path, found = plan.run_dir / CONFIG_FILE, _differences(plan)
    changed = [*found.execution, *found.other]
    try:
        make_folder(plan.run_dir)
        if not path.is_file():
            if plan.origin is not None:
                take_over(plan)
            # Last: where it is, the run has begun, and needs nothing more of another one.
            write_json(path, _identity(plan))
        elif changed:
            write_json(path, _with_values(read_object(path, ConfigError, DAMAGED), _identity(plan), changed))
    except StorageError:  # it says what failed, and what to do
        raise
    except OSError as error:
        raise ConfigError(f"cannot write to {plan.run_dir} ({error.strerror}); choose a writable --storage.") from error


def _identity(plan: Plan) -> dict[str, Json]:
    digests: dict[str, Json] = {suite.name: suite.digest for suite in plan.suites}
    facts: dict[str, Json] = {
        "stream_name": plan.stream.name,
        "stream_digest": plan.stream.digest,
        "suite_digests": digests,
    }
    if plan.chosen is not None:
        facts["chosen"] = {**plan.chosen}
    return {**plan.config.to_json(), **facts, "rows": _rows(plan.fitted)}


def _rows(fitted: Fitted) -> dict[str, Json]:
    """How rows become a model's input. It is recorded, and a continued run must have the same."""
    return {"template": fitted.template, "left_out": {**fitted.left_out}, "cut": {**fitted.cut}}


def _before_rows_were_kept(plan: Plan) -> Fitted:
    """For a run recorded without `rows`: no row was too long then, and of the templates only chatml is unchanged."""
    template = plan.fitted.template
    return Fitted(template=template if template == "chatml" else "as in an earlier version")


def _with_values(stored: dict[str, Json], wanted: dict[str, Json], names: Iterable[str]) -> dict[str, Json]:
    """`stored` with the values that `wanted` has for the options `names`; the rest stays as it was written."""
    result = {**stored}
    for name in names:
        section, _, option = name.partition(".")
        of, found = wanted[section], result.get(section)
        if isinstance(of, dict):
            result[section] = {**(found if isinstance(found, dict) else {}), option: of[option]}
        else:
            result[section] = of
    return result
