"""Light on purpose (no mlflow): where and what a run records, and the tracker that records nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from components.core.errors import ConfigError
from components.core.events import Event
from components.core.location import Location, Place
from components.core.machine import usable_cpus
from components.core.options import Positive, check_options
from components.core.secrets import without_secrets
from components.core.shell import tool_command

if TYPE_CHECKING:
    from components.data.suite import Suite
    from components.data.tasks import TaskStream

Status = Literal["FINISHED", "FAILED", "KILLED"]

URI_VARIABLE, EXPERIMENT_VARIABLE = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"  # MLflow's own
DATABASE = "mlflow.db"
UI_CPUS = 8  # `mlflow ui` starts four servers beside its own process; with fewer CPUs one is enough
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where runs are recorded."""

    uri: str | None = None
    """sqlite:////absolute/file.db, http(s)://server, a database or databricks; None takes MLFLOW_TRACKING_URI, and
    without that sqlite in the storage folder."""
    experiment: str = field(default_factory=lambda: os.environ.get(EXPERIMENT_VARIABLE) or "littoral")
    """Name of the MLflow experiment; by default MLFLOW_EXPERIMENT_NAME, and without that littoral."""
    enabled: bool = True
    """Record to MLflow."""
    wait_s: Positive = 120.0
    """Seconds that a run's end waits for a store that takes nothing; the same command sends the rest later."""

    def __post_init__(self) -> None:
        check_options(self, "tracking")
        if not self.experiment.strip():
            raise ConfigError("tracking.experiment is empty; give the MLflow experiment a name, such as littoral.")
        if self.uri is not None:
            _require_store(self.uri, "tracking.uri")


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """One data set a run reads, as an MLflow dataset input."""

    name: str
    digest: str  # identity of the content, any length
    uri: str
    num_rows: int
    context: str  # "train", "test" or "validation"


def dataset_records(stream: TaskStream, suites: Sequence[Suite] = ()) -> list[DatasetRecord]:
    """The splits of a stream that a run learns from and is scored on, and the suites, by their manifests."""
    splits = [
        (task.name, *part) for task in stream.tasks for part in (("train", task.train), (task.scored_on, task.test))
    ]
    splits += [(suite.name, "test", suite.test) for suite in suites]
    return [
        DatasetRecord(
            name=f"{name}/{context}",
            digest=split.digest,
            uri=split.path.as_uri(),
            num_rows=split.num_rows,
            context=context,
        )
        for name, context, split in splits
    ]


def tracking_uri(config: TrackingConfig, storage: Place) -> str:
    """The URI a run records to: the configured one, else MLFLOW_TRACKING_URI, else a sqlite file in `storage`.

    Raises `ConfigError` where the variable names no store that can be used, and where nothing names one for runs at a
    URI: a sqlite file needs a folder.
    """
    return tracking_source(config, storage)[0]


def tracking_source(config: TrackingConfig, storage: Place) -> tuple[str, str]:
    """The URI a run records to, and where that setting comes from."""
    if config.uri is not None:
        return config.uri, "tracking.uri"
    if given := os.environ.get(URI_VARIABLE):
        _require_store(given, URI_VARIABLE)
        return given, URI_VARIABLE
    if isinstance(storage, Location):
        raise ConfigError(
            f"runs in {storage} cannot have MLflow's SQLite file beside them; give --tracking.uri (or {URI_VARIABLE}), "
            "such as http://HOST:PORT of an MLflow server, or --tracking.no-enabled."
        )
    return sqlite_uri(storage.expanduser().resolve() / DATABASE), "in the storage"


def recorded_uri(config: TrackingConfig, run_dir: Place, recorded: str | None) -> str:
    """The URI of the store that holds the run in `run_dir`, also after its storage was moved.

    `recorded` is what its link says (without secrets); None for a run that was recorded before links said it.
    """
    known = config.uri or (recorded if recorded and "***" not in recorded else None)
    if isinstance(run_dir, Location):
        known = known or os.environ.get(URI_VARIABLE)
        if not known:
            raise ConfigError(f"nothing says where {run_dir} is recorded; set {URI_VARIABLE} to the store that has it.")
        return known
    uri = known or (tracking_uri(config, run_dir.parent) if recorded else sqlite_uri(run_dir.parent / DATABASE))
    database = sqlite_path(uri)
    if database is not None and not database.is_file():
        beside = (folder / DATABASE for folder in (run_dir.parent, run_dir.parent.parent))  # a trial's is higher up
        uri = next((sqlite_uri(path) for path in beside if path.is_file()), uri)
    return uri


def sqlite_uri(database: Path) -> str:
    """The URI of a sqlite file. MLflow and SQLAlchemy read %, ? and # in it as signs of a URI."""
    path = str(database)
    quoted = path.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    # Of "sqlite:///..." MLflow makes the quoted path's folder, too; where a driver is named, it does not.
    return f"sqlite{'' if quoted == path else '+pysqlite'}:///{quoted}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite URI as SQLAlchemy finds it; None for other stores."""
    if not uri.startswith("sqlite"):
        return None
    return Path(unquote(uri.partition(":///")[2].partition("?")[0]))


def ui_command(uri: str) -> str:
    """What a person types, or opens, to look at the runs."""
    if uri.startswith(("http", "databricks")):
        return without_secrets(uri)
    few = ("--workers", "1") if usable_cpus() < UI_CPUS else ()
    return tool_command("mlflow", "ui", "--backend-store-uri", without_secrets(uri), *few)


def _require_store(uri: str, given: str) -> None:
    """Raise `ConfigError` for a URI that MLflow keeps no runs in; `given` is the option or variable that holds it."""
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in SCHEMES:
        raise ConfigError(
            f"{given} {without_secrets(uri)!r} is not a store MLflow keeps runs in today; give "
            f"sqlite:////absolute/path/mlflow.db or a URI that begins with one of {', '.join(SCHEMES[1:])}."
        )
    if scheme == "sqlite" and not uri.partition(":")[2].startswith("////"):
        raise ConfigError(
            f"{given} {uri!r} is a relative path, which is lost with a submitted job's folder; "
            "give an absolute one with four slashes, sqlite:////absolute/path/mlflow.db."
        )
    try:
        parts = urlsplit(uri)
        missing = scheme.startswith("http") and not parts.hostname
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"{given} {without_secrets(uri)!r} is no URI ({error}).") from error
    if missing:
        raise ConfigError(f"{given} {without_secrets(uri)!r} names no server; give http://HOST:PORT.")


class Tracker:
    """What the driver talks to. This one records nothing: it stands for `TrackingConfig(enabled=False)`."""

    run_id: str | None = None  # the parent run's id; keep it to resume
    ui: str | None = None  # what to type to see the runs
    view: str | None = None  # the link to them, with charts laid out

    def handle(self, event: Event) -> None:
        """Record one event of the stream."""

    def finish(self, status: Status) -> None:
        """Send what is still waiting and close the runs."""
