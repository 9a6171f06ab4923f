"""MLflow's model registry: the adapters of a stream as versions of one registered model, the best one by alias.

A version is what a learned task left. `models:/NAME/latest` is MLflow's own name for the newest version; the alias
`best` is the last version of the run with the highest final average among those that learned the whole stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

BEST = "best"
LEARNED, SCORE = "tasks_learned", "final_average"


@dataclass(frozen=True, kw_only=True)
class Version:
    """One learned task's adapter, as it is registered."""

    name: str  # of the registered model
    run_id: str
    model_id: str  # MLflow's logged model of the same checkpoint
    source: str  # URI of the checkpoint
    tags: Mapping[str, str]  # with LEARNED and SCORE
    whole: bool  # the last task of the stream


def register(client: MlflowClient, version: Version, *, served: bool) -> None:
    """Add the version unless it is there, tell its parent by tag, and give it the alias if it is the best.

    `served`: the store is behind a server, which refuses local paths it cannot check; it gets the logged model instead.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(version.name, description="Adapters of one stream, one version a learned task.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    own = client.search_model_versions(f"name = '{version.name}' AND run_id = '{version.run_id}'")
    newest_first = sorted(own, key=lambda one: -int(one.version))  # of a version that is there twice, the first counts
    by_learned = {int(one.tags[LEARNED]): one for one in newest_first if LEARNED in one.tags}
    learned = int(version.tags[LEARNED])
    found = by_learned.get(learned)
    if found is None:
        parent = by_learned.get(learned - 1)
        found = client.create_model_version(
            version.name,
            source=f"models:/{version.model_id}" if served else version.source,
            run_id=version.run_id,
            tags={
                **version.tags,
                "logged_model": version.model_id,
                **({} if parent is None else {"parent_version": str(parent.version)}),
            },
            model_id=version.model_id,
        )
    best = version_at(client, version.name, BEST) if version.whole else None
    if version.whole and (best is None or float(version.tags[SCORE]) > float(best.tags[SCORE])):
        client.set_registered_model_alias(version.name, BEST, str(found.version))


def version_at(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version with the alias, such as `BEST`; None where there is none, or no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def registered_name(tags: Mapping[str, str]) -> str:
    """`continual_llava-mini-coast-domain-394f39b4-smol`: method, stream with its data, and backbone."""
    names = {**tags, "stream_digest": tags.get("stream_digest", "")[:8]}
    parts = [names.get(key, "") for key in ("method", "stream", "stream_digest", "backbone")]
    return "-".join(part.replace("/", "_").replace(":", "_") for part in parts if part) or "adapters"
