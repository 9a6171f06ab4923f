"""Models in production: `models:/NAME@ALIAS` names the checkpoint of one run, and is moved to that of another.

What a run registers by itself has a name of method, stream and backbone (registry.py), which changes with every task
that is added. A model in production keeps its name. Each of its versions stands for what one run had learned after one
of its tasks, and has the tags of the version that the run has registered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from components.core.errors import ConfigError, TrackingError
from components.core.secrets import without_secrets
from components.tracking.config import TrackingConfig, sqlite_path, tracking_uri
from components.tracking.registry import LEARNED, version_at
from components.tracking.retry import told
from components.tracking.store import check_reachable, waiting_at_most

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

SCHEME = "models:/"
_REFERENCE = re.compile(r"models:/([^/@:%\"']+)(?:@([A-Za-z0-9_-]+)|/(\d+))")
_ALIAS = re.compile(r"(?!v\d+$|latest$)[A-Za-z0-9_-]{1,255}")  # what MLflow takes
_MODEL = re.compile(r"[^/@:%\"'.\s][^/@:%\"']{0,199}")
_CHECKPOINT = re.compile(r"(.+)/([^/]+)/checkpoints/(\d+)-([^/]+)")
ANSWERS_WITHIN_S = 8  # a server of MLflow

GATE, VERDICT = "gate", "gate_verdict"  # tags of a run that was to go into production, and of its version
Gate = Literal["accepted", "rejected"]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION`."""

    name: str
    alias: str | None = None
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises `ConfigError` for any other text."""
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise ConfigError(f"{text!r:.200} names no registered model; give models:/NAME@ALIAS or models:/NAME/3.")
        return cls(name=found[1], alias=found[2], version=found[3])

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}@{self.alias}" if self.alias else f"{SCHEME}{self.name}/{self.version}"


def production(name: str, alias: str) -> Reference:
    """The reference of a name and an alias; raises `ConfigError` for what MLflow does not take."""
    if not _MODEL.fullmatch(name):
        raise ConfigError(
            f"--model {name!r:.100} cannot be a registered model's name; give up to 200 characters without / : @ and "
            "quotation marks, not beginning with a dot."
        )
    if not _ALIAS.fullmatch(alias):
        raise ConfigError(f"--alias {alias!r:.100} may hold letters, digits, '-' and '_', and is not v1 or latest.")
    return Reference(name=name, alias=alias)


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version of a registered model, and the checkpoint that it stands for."""

    name: str
    version: str
    storage: str  # where the run's folder was then: a path, or a URI
    run: str  # its id
    learned: int  # tasks
    task: str  # the last of them

    def __str__(self) -> str:
        return f"version {self.version} of {self.name} ({self.run}/{self.learned:02d}-{self.task})"


class Registry:
    """The registered models of a store. Every call raises `TrackingError` where that does not answer or refuses."""

    def __init__(self, config: TrackingConfig, storage: Path) -> None:
        """Raises `ConfigError` where there is no store yet."""
        self.uri = tracking_uri(config, storage)
        database = sqlite_path(self.uri)
        if database is not None and not database.is_file():
            raise ConfigError(
                f"there is no MLflow store {database}; give its address, or set MLFLOW_TRACKING_URI, or give the "
                "--storage whose runs are recorded in it."
            )
        self._known: MlflowClient | None = None

    def find(self, reference: Reference) -> Registered | None:
        """What a reference names; None where there is no such model, alias or version.

        Raises `TrackingError` for a version that stands for no checkpoint of a run.
        """
        with self._asking():
            client = self._client()
            if reference.alias is not None:
                found = version_at(client, reference.name, reference.alias)
            else:
                query = f"name = '{reference.name}'"
                versions = {str(each.version): each for each in client.search_model_versions(query)}
                found = versions.get(str(reference.version))
        return None if found is None else _registered(found)

    def add(self, name: str, mlflow_run: str, learned: int, verdict: str) -> Registered:
        """The version of model `name` for what a run had learned after `learned` tasks; made unless it is there.

        Raises `TrackingError` where that run has not registered this checkpoint.
        """
        with self._asking():
            client = self._client()
            versions = [
                each
                for each in client.search_model_versions(f"run_id = '{mlflow_run}'")
                if each.tags.get(LEARNED) == str(learned)
            ]
            own = [each for each in versions if each.name == name]
            if own:
                return _registered(min(own, key=lambda each: int(each.version)))
            if not versions:
                raise TrackingError(
                    f"MLflow has no version yet for the checkpoint after task {learned} of its run {mlflow_run}; the "
                    "same command sends what is queued, and registers it then."
                )
            return _registered(self._copied(client, name, versions[0], verdict))

    def move(self, reference: Reference, version: str) -> None:
        """Have the alias name this version."""
        assert reference.alias is not None
        with self._asking():
            self._client().set_registered_model_alias(reference.name, reference.alias, version)

    def note(self, mlflow_run: str, gate: Gate, verdict: str) -> None:
        """Tag the run with what was decided and why."""
        with self._asking():
            for key, text in {GATE: gate, VERDICT: verdict}.items():
                self._client().set_tag(mlflow_run, key, without_secrets(text)[:5000])

    def _copied(self, client: MlflowClient, name: str, of: ModelVersion, verdict: str) -> ModelVersion:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(name, description="What is, or was, in production; an alias names it.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        model_id = of.tags["logged_model"]
        served = self.uri.startswith(("http", "databricks"))  # refuses local paths, which it cannot check
        return client.create_model_version(
            name,
            source=f"{SCHEME}{model_id}" if served else of.tags["checkpoint"],
            run_id=of.run_id,
            tags={**of.tags, GATE: "accepted", VERDICT: without_secrets(verdict)[:5000]},
            model_id=model_id,
        )

    def _client(self) -> MlflowClient:
        if self._known is None:
            from mlflow import MlflowClient

            check_reachable(self.uri)
            self._known = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._known

    @contextmanager
    def _asking(self) -> Iterator[None]:
        what, advice = f"MLflow at {without_secrets(self.uri)} cannot be used", "start it, or correct its address"
        with told(what, advice), waiting_at_most(ANSWERS_WITHIN_S):
            yield


def _registered(found: ModelVersion) -> Registered:
    uri = found.tags.get("checkpoint", "")
    place = unquote(urlsplit(uri).path) if uri.startswith("file:") else uri
    parts = _CHECKPOINT.fullmatch(place)
    if parts is None:
        raise TrackingError(
            f"version {found.version} of {found.name} stands for no checkpoint of a run (its tag `checkpoint` is "
            f"{uri!r:.200}); let the alias name a version that `littoral nightly` has registered."
        )
    return Registered(
        name=found.name,
        version=str(found.version),
        storage=parts[1],
        run=parts[2],
        learned=int(parts[3]),
        task=parts[4],
    )
