"""Whether a cluster has room for a run's workers, and on which of its nodes: labels tell groups of nodes apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import ray._private.worker as ray_worker
from ray._private.ray_constants import KV_NAMESPACE_JOB

from components.core.errors import ConfigError
from components.core.job import submission_id
from components.training.config import ClusterConfig, RunConfig
from components.training.devices import Node, cluster_nodes, uses_gpu, with_labels
from components.training.placement import require_places

_ANSWER_S = 10.0  # for the cluster's control service to answer


def check_resources(config: RunConfig) -> bool:
    """Whether the workers get a GPU each.

    Raises `ConfigError` for workers and scorers that the cluster cannot place: they would be waited for without end.
    """
    cluster = config.cluster
    wanted, reserved, labels = cluster.num_workers, reserved_cpus(), " and ".join(cluster.worker_labels)
    everywhere = cluster_nodes()
    there = nodes_with(cluster.worker_labels, everywhere)
    workers = f"{wanted} worker{'s need' if wanted > 1 else ' needs'}"
    if not there:
        raise ConfigError(
            f"cluster.worker-labels asks for nodes with {labels}, and the cluster has none; start one with --labels "
            f"{','.join(cluster.worker_labels)}, or leave out cluster.worker-labels."
        )
    cpus, needed = int(sum(node.cpus for node in everywhere)), wanted + 1 + reserved
    if needed > cpus:
        job = f", {reserved:g} kept for the job's command" if reserved else ""
        raise ConfigError(
            f"{workers} {needed:g} CPUs (one is left to reading data{job}), the cluster has {cpus}; "
            f"{'lower cluster.num_workers, ' if wanted > 1 else ''}"
            f"{'lower --entrypoint-num-cpus, ' if reserved else ''}add nodes, or tell Ray to count more CPUs: "
            f"ray start --num-cpus {needed:g}."
        )
    if wanted > (cpus := sum(int(node.cpus) for node in there)):
        raise ConfigError(
            f"{workers} as many CPUs, nodes with {labels} have {cpus}; lower cluster.num_workers or add nodes."
        )
    gpus = sum(int(node.gpus) for node in there)
    on_gpus = uses_gpu(cluster.use_gpu, gpus)
    if on_gpus and wanted > gpus:
        raise ConfigError(
            f"cluster.num_workers is {wanted}, each with a GPU, and the number of GPUs in "
            f"{f'nodes with {labels}' if labels else 'the cluster'} is {gpus:g}; lower cluster.num_workers or set "
            "cluster.use-gpu to false."
        )
    require_places(config, everywhere, on_gpus=on_gpus, reserved=reserved)
    return on_gpus


def awaited_nodes(cluster: ClusterConfig) -> str | None:
    """What a run says where data is to be read on nodes that are not there yet: an autoscaler may bring them."""
    if nodes_with(cluster.data_labels, cluster_nodes()):
        return None
    labels = " and ".join(cluster.data_labels)
    return f"data is read on nodes with {labels}; the cluster has none yet, and the run waits for one"


def nodes_with(labels: Sequence[str], nodes: Sequence[Node]) -> list[Node]:
    """Those of `nodes` that have all of these labels."""
    return [node for node in nodes if with_labels(labels).items() <= node.labels.items()]


def reserved_cpus() -> float:
    """CPUs that `ray job submit --entrypoint-num-cpus` keeps for this process; the run's parts cannot have them."""
    job = submission_id()
    if job is None:
        return 0.0
    cluster: Any = ray_worker.global_worker  # Any: its attributes are set at run time
    # As ray.dashboard.modules.job.common.JobInfoStorageClient, which needs an event loop.
    key = f"_ray_internal_job_info_{job}".encode()
    found = cluster.gcs_client.internal_kv_get(key, namespace=KV_NAMESPACE_JOB, timeout=_ANSWER_S)
    return float((json.loads(found) if found else {}).get("entrypoint_num_cpus") or 0.0)
