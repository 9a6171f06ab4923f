"""What a store has twice: it was asked again for something that it made after all, when its answer came too late."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, TypeVar

from components.tracking.registry import BEST, LEARNED

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")


def remove_doubles(client: MlflowClient, experiment_id: str, run_id: str) -> None:
    """Of a stream's run: leave one run for each task, one logged model for each checkpoint, and one version of it.

    Each is the one that was used: `in_use` for runs, the first for versions, and theirs for models.
    """
    below = client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=50_000)
    for runs in _grouped((run for run in below if "task" in run.data.tags), lambda run: run.data.tags["task"]):
        used = in_use(runs)
        for run in runs:
            if run is not used:
                client.delete_run(run.info.run_id)
    referred: set[str] = set()
    versions = [one for one in client.search_model_versions(f"run_id = '{run_id}'") if LEARNED in one.tags]
    for several in _grouped(versions, lambda one: (one.name, one.tags[LEARNED])):
        first, *later = sorted(several, key=lambda one: int(one.version))
        referred.add(first.tags.get("logged_model", ""))
        for one in later:
            if BEST in client.get_model_version(one.name, one.version).aliases:
                client.set_registered_model_alias(one.name, BEST, str(first.version))
            client.delete_model_version(one.name, str(one.version))
    models = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", max_results=1000)
    for same in _grouped(models, lambda model: model.name):
        _, *others = sorted(same, key=lambda m: (m.model_id not in referred, m.creation_timestamp))
        for model in others:
            client.delete_logged_model(model.model_id)


def in_use(runs: Iterable[Run]) -> Run:
    """Of several runs of one task: the first that has metrics, or the first."""
    return min(runs, key=lambda run: (not run.data.metrics, run.info.start_time, run.info.run_id))


def _grouped(found: Iterable[T], by: Callable[[T], Hashable]) -> list[list[T]]:
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for each in found:
        groups[by(each)].append(each)
    return list(groups.values())
