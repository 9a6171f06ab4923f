"""The processes that score rows beside training, on the driver: their places are taken before training starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from components.core.errors import ConfigError
from components.core.ray_watch import left_ray
from components.training.devices import with_labels
from components.training.placement import resources_of_a_scorer, what_a_scorer_needs
from components.training.plan import WorkerPlan
from components.training.scorer import Scorer

PLACE_S = 30.0  # for the cluster to find places that are free


@contextmanager
def scoring_beside(plan: WorkerPlan, *, on_gpus: bool) -> Iterator[tuple[ActorHandle, ...]]:
    """While open, the run's scorers, each in its place; none for a run that is scored in turn.

    Raises `ConfigError` when other jobs have taken their places: training would begin, and then wait for them.
    """
    evaluation, cluster = plan.config.evaluation, plan.config.cluster
    if not evaluation.beside:
        yield ()
        return
    places = placement_group(
        [resources_of_a_scorer(plan.config, on_gpus=on_gpus)] * evaluation.beside,
        strategy="SPREAD" if len(ray.nodes()) > 1 else "PACK",
        bundle_label_selector=[with_labels(evaluation.beside_labels)] * evaluation.beside,
    )
    try:
        if not places.wait(PLACE_S):
            raise ConfigError(
                f"the cluster has places for {evaluation.beside} scoring processes (evaluation.beside), each with "
                f"{what_a_scorer_needs(plan.config, on_gpus=on_gpus)}, but others have taken them; wait for these, or "
                "set evaluation.beside to 0."
            )
        yield tuple(
            _started(plan, number, places, on_gpus=on_gpus, restarts=cluster.max_failures)
            for number in range(evaluation.beside)
        )
    finally:
        if not left_ray():
            with suppress(RayError):
                remove_placement_group(places)  # and ends what runs in it


def _started(plan: WorkerPlan, number: int, places: PlacementGroup, *, on_gpus: bool, restarts: int) -> ActorHandle:
    resources = resources_of_a_scorer(plan.config, on_gpus=on_gpus)
    handle: Any = (  # Any: Ray's types have a proxy here, which is no handle for them
        ray.remote(Scorer)
        .options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            # One that is lost is started again, and its call repeated: cells that were whole are kept.
            max_restarts=restarts,
            max_task_retries=-1 if restarts else 0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=places, placement_group_bundle_index=number
            ),
            runtime_env={"env_vars": {"DS_ACCELERATOR": "cuda" if on_gpus else "cpu"}},
        )
        .remote(plan, number)
    )
    return handle
