"""Finished streams read back, from the run's folder alone or from a *record*; neither needs MLflow.

A record is one JSON file with all that comparing runs needs (configuration, matrices, every test row's score, costs),
and nothing large or tied to a place: no checkpoints, replies, folders or tracking.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from components.core.errors import ConfigError, LittoralError
from components.core.files import write_text
from components.core.location import Place
from components.core.options import from_plain, to_plain
from components.core.reading import read_object, understood
from components.data.stream_config import StreamConfig
from components.evaluation.decisions import DECISIONS_FILE, Decisions
from components.evaluation.general import GENERAL_FILE, GeneralScores
from components.evaluation.majority import majority_scores
from components.evaluation.matrix import MATRIX_FILE, ScoreMatrix
from components.evaluation.matrix_rows import variant_file
from components.evaluation.replies import noted
from components.runs.costs import Cost, Costs
from components.runs.provenance import made_with
from components.statistics.contributions import ItemScores, ScoredRun
from components.tracking.config import TrackingConfig, recorded_uri
from components.training.config import Chosen, RunConfig
from components.training.lineage import Origin, opened, read_origin

FORMAT = "littoral-record-1"


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What a task of a run was: `data.tasks.Task.identity`, and what the majority answer scores on its test rows."""

    identity: str
    majority: float


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One finished stream, or what there is so far of one that is not (`read_run` says when)."""

    path: Place
    config: RunConfig
    stream_digest: str
    stream_name: str  # the stream's own: a prepared one is configured by its folder
    finished: str  # ISO 8601; empty for a run that has not
    matrix: ScoreMatrix
    oracle: ScoreMatrix | None
    cost: Cost | None  # None: unknown, as for runs of a version that wrote no costs.json
    mlflow_id: str | None = None  # None for a record or a run without MLflow
    general: GeneralScores = field(default_factory=GeneralScores)  # empty for a run without general suites
    tasks: Mapping[str, TaskFacts] = field(default_factory=dict[str, "TaskFacts"])  # of a record; see `task_facts`
    chosen: Chosen | None = None  # how a sweep chose the options; None: unknown
    origin: Origin | None = None  # the run that it continued from
    decisions: Decisions = field(default_factory=Decisions)  # empty where nothing is decided, and for older runs


def read_run(path: Place, *, unfinished: bool = False) -> FinishedRun:
    """The run in folder `path` or in the record `path`; raises `ConfigError` when it is neither or has not finished.

    `unfinished` allows the latter: the run then has the rows it has so far, and neither `finished` nor `cost`.
    """
    if path.is_file():
        return _from_record(path)
    if not (path / "config.json").is_file():
        if isinstance(path, Path) and any(path.glob("*/config.json")):  # a storage or a sweep
            raise ConfigError(f"{path} is not a run but holds some; give one of them, and to report all {path}/*.")
        raise ConfigError(f"{path} is not the folder of a run nor a record; give STORAGE/RUN-ID, such as runs/first.")
    ended = path / "finished.json"
    if not ended.is_file() and not unfinished:
        raise ConfigError(f"the run in {path} has not finished; run its command again to continue it.")
    content = _read_object(path / "config.json", "stream_digest")
    digest = str(content.pop("stream_digest"))
    with understood(path / "config.json", ConfigError, "copy the run's folder again"):
        config = RunConfig.from_json(content)
    name = content.get("stream_name")
    oracle, link = variant_file(path, "oracle"), path / "mlflow.json"
    mlflow_id = None
    if link.is_file() and ended.is_file():
        known = _read_object(link, "run_id")
        mlflow_id = str(known["run_id"])
        if isinstance(path, Path) or known.get("store"):
            store = recorded_uri(config.tracking, path, known.get("store"))
            with understood(link, ConfigError, "delete it to have the run recorded in MLflow anew"):
                config = replace(config, tracking=replace(config.tracking, uri=store))
    matrix = ScoreMatrix.read(path / MATRIX_FILE)
    return FinishedRun(
        path=path,
        config=config,
        stream_digest=digest,
        stream_name=stream_name(config) if name is None else str(name),
        chosen=content.get("chosen"),
        finished=str(_read_object(ended, "finished")["finished"]) if ended.is_file() else "",
        matrix=matrix,
        oracle=ScoreMatrix.read(oracle) if oracle.is_file() else None,
        cost=Costs.read(path).total(_measured(matrix)) if ended.is_file() else None,
        mlflow_id=mlflow_id,
        general=GeneralScores.read(path / GENERAL_FILE),
        origin=read_origin(path),
        decisions=Decisions.read(path / DECISIONS_FILE),
    )


def _read_object(path: Place, needed: str) -> dict[str, Any]:
    """The JSON object in a file of a run's folder; raises `ConfigError` for a broken one or one without `needed`."""
    content = read_object(path, ConfigError, "copy the run's folder again")
    if needed not in content:
        raise ConfigError(f"{path} is not a JSON object with {needed!r}; copy the run's folder again.")
    return content


def _measured(matrix: ScoreMatrix) -> list[str]:
    """What the rows with a score come after: joint learning leaves empty ones."""
    return [
        after for after, row in zip(matrix.after, matrix.rows, strict=True) if any(cell is not None for cell in row)
    ]


def stream_name(config: RunConfig) -> str:
    """The stream's own name where only its configuration is kept, as by earlier versions: a folder's if it is here."""
    folder = Path(config.stream.name).expanduser()
    if not folder.is_dir():
        return config.stream.name
    from components.data.prepared import open_prepared  # imports pyarrow

    try:
        return open_prepared(folder).name
    except LittoralError:
        return config.stream.name


def write_record(run: FinishedRun, folder: Place) -> Place:
    """Write the record of a run from its folder into `folder`.

    Raises `ConfigError` rather than replace another record, and for a folder that cannot be written.
    """
    if not run.path.is_dir():
        raise ConfigError(f"{run.path} is a record already; records are made from the folder of a run.")
    target = folder / f"{run.config.run_id}.json"
    if target.exists():
        raise ConfigError(f"{target} exists; move it away or record into another folder.")
    config = run.config
    moved = replace(
        config, storage=Path("runs"), tracking=TrackingConfig(), cluster=replace(config.cluster, address=None)
    )
    content = {
        "format": FORMAT,
        "config": moved.to_json(),
        "stream_name": run.stream_name,
        "stream_digest": run.stream_digest,
        "finished": run.finished,
        "cost": None if run.cost is None else asdict(run.cost),
        "score_matrix": _matrix(run.matrix, config),
        "oracle_matrix": None if run.oracle is None else _matrix(run.oracle, config),
        "item_scores": item_scores(run.path),
    }
    facts, made = task_facts(run), made_with(run.path)
    if made:
        content["made_with"] = made
    if run.chosen is not None:
        content["chosen"] = run.chosen
    if facts:
        content["tasks"] = {task: asdict(one) for task, one in facts.items()}
    if run.general.figures:
        content["general"] = run.general.to_dict(run.matrix.summary().get("final_average"))
    if run.decisions:
        content["decisions"] = run.decisions.to_dict()
    if run.origin is not None:
        content["continued_from"] = to_plain(replace(run.origin, folder=""))  # a record is tied to no place
    try:
        write_text(target, json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror}); give another folder to --record.") from error
    return target


def item_scores(path: Place) -> ItemScores:
    """Every test row's score, from the predictions in a run's folder or from a record."""
    if path.is_file():
        advice = "make the record again"
        found = read_object(path, ConfigError, advice).get("item_scores")
        try:
            return from_plain(dict[str, dict[str, list[float]]], found, "item_scores")
        except ConfigError as error:
            raise ConfigError(f"{path} is not a whole record of a run ({error}); {advice}.") from error
    from components.evaluation.predictions import run_predictions  # imports pyarrow

    cells: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for one in run_predictions(path, ["score"]):
        cells.setdefault(one.after, {}).setdefault(one.task, []).append((one.sample_id, round(one.score, 6)))
    return {
        after: {task: [score for _, score in sorted(rows)] for task, rows in row.items()}
        for after, row in cells.items()
    }


def scored(run: FinishedRun) -> ScoredRun:
    """The run with every test row's score; raises `ConfigError` for a run or record without them."""
    items = item_scores(run.path)
    if not items:
        raise ConfigError(
            f"{run.path} has no scores of single test rows; record it again from a folder with its predictions."
        )
    return ScoredRun(seed=run.config.seed, matrix=run.matrix, items=items)


def task_facts(run: FinishedRun) -> Mapping[str, TaskFacts]:
    """Facts of the run's tasks by name, from its record or from its data; empty where neither has them.

    The data have them only while they are what the run was scored on: a folder may be gone, and embedded data may have
    changed with the version.
    """
    evaluation = run.config.evaluation
    return run.tasks or _facts_of(run.config.stream, run.origin, evaluation.split, evaluation.limit, run.stream_digest)


@cache
def _facts_of(
    config: StreamConfig, origin: Origin | None, split: str, limit: int | None, digest: str
) -> Mapping[str, TaskFacts]:
    try:
        stream = opened(config, origin, scored=split)
    except LittoralError:
        return {}
    if stream.digest != digest:
        return {}
    majority = majority_scores(stream, limit)
    return {task.name: TaskFacts(identity=task.identity, majority=majority[task.name]) for task in stream.tasks}


def _matrix(matrix: ScoreMatrix, config: RunConfig) -> dict[str, object]:
    return matrix.to_dict(
        stream=config.stream.name,
        method=config.method.name,
        backbone=config.backbone.name,
        seed=config.seed,
        extra={"scored_on": config.evaluation.split, **noted(config.evaluation.replies)},
    )


def _from_record(path: Place) -> FinishedRun:
    content = read_object(path, ConfigError, "give a record that report.py --record made")
    with understood(path, ConfigError, "make the record again"):
        if content.get("format") != FORMAT:
            raise ConfigError(f"{path} is not the record of a run (format {FORMAT}); make one with report.py --record.")
        cost, oracle, origin = content["cost"], content["oracle_matrix"], content.get("continued_from")
        config = RunConfig.from_json(content["config"])
        return FinishedRun(
            path=path,
            config=config,
            stream_digest=str(content["stream_digest"]),
            stream_name=str(content["stream_name"]) if "stream_name" in content else stream_name(config),
            chosen=content.get("chosen"),
            finished=str(content["finished"]),
            matrix=ScoreMatrix.from_dict(content["score_matrix"]),
            oracle=None if oracle is None else ScoreMatrix.from_dict(oracle),
            cost=None if cost is None else from_plain(Cost, cost, "cost"),
            general=GeneralScores.from_dict(content["general"]) if "general" in content else GeneralScores(),
            origin=None if origin is None else from_plain(Origin, origin, "continued_from"),
            tasks=from_plain(dict[str, TaskFacts], content.get("tasks", {}), "tasks"),
            decisions=Decisions.from_dict(content["decisions"]) if "decisions" in content else Decisions(),
        )
