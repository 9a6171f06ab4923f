"""Where and what a run records, free of mlflow: the options, data set records, and the tracker that records nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from components.data.suites.suite import Suite
from components.data.tasks import TaskStream
from components.errors import ConfigError
from components.events import Event
from components.run_facts import without_secrets

Status = Literal["FINISHED", "FAILED", "KILLED"]

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where runs are recorded."""

    uri: str | None = None  # None: sqlite in the storage folder; or sqlite:////abs/file.db, http(s)://server, ...
    experiment: str = "littoral"
    enabled: bool = True

    def __post_init__(self) -> None:
        if not self.experiment.strip():
            raise ConfigError("tracking.experiment is empty; give the MLflow experiment a name, such as littoral.")
        if self.uri is None:
            return
        scheme = self.uri.partition(":")[0].partition("+")[0]
        if scheme not in SCHEMES:
            raise ConfigError(
                f"tracking.uri {without_secrets(self.uri)!r} is not a store MLflow keeps runs in today; give "
                f"sqlite:////absolute/path/mlflow.db or a URI that begins with one of {', '.join(SCHEMES[1:])}."
            )
        if scheme == "sqlite" and not self.uri.partition(":")[2].startswith("////"):
            raise ConfigError(
                f"tracking.uri {self.uri!r} is a relative path, which is lost with a submitted job's folder; "
                "give an absolute one with four slashes, sqlite:////absolute/path/mlflow.db."
            )


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


def tracking_uri(config: TrackingConfig, storage: Path) -> str:
    """The URI a run records to: the configured one, or an absolute sqlite file in `storage`."""
    return config.uri or f"sqlite:///{storage.resolve() / 'mlflow.db'}"


def ui_command(uri: str) -> str:
    """What a person types, or opens, to look at the runs."""
    if uri.startswith(("http", "databricks")):
        return without_secrets(uri)
    return f"mlflow ui --backend-store-uri {without_secrets(uri)}"


class Tracker:
    """What the driver talks to. This one records nothing: it stands for `TrackingConfig(enabled=False)`."""

    run_id: str | None = None  # the parent run's id; keep it to resume
    ui: str | None = None  # what to type to see the runs
    view: str | None = None  # the link to them, with charts laid out

    def handle(self, event: Event) -> None:
        """Record one event of the stream."""

    def finish(self, status: Status) -> None:
        """Send what is still waiting and close the runs."""
