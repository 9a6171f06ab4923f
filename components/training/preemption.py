"""A node that is about to be taken away: its run stops in order while there is time.

Ray knows of it by its drain notice, which autoscalers give for spot instances, `ray drain-node` by hand, and
`ray start --block` when it gets SIGTERM, as from Kubernetes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray._private.state as cluster_state
import ray._private.worker as ray_worker

from components.core.location import Place
from components.training.stopping import request_stop

LOOK_EVERY_S = 2.0
_ANSWER_S = 5.0  # for the cluster to answer


@contextmanager
def stopping_when_drained(run_dir: Place, say: Callable[[str], None]) -> Iterator[None]:
    """While open, ask the run to stop when a node of it is being drained: one with a process of this Ray job."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_EVERY_S):
            try:
                node = drained_node()
                if node is not None:
                    request_stop(run_dir, for_now=True)
                    say(f"node {node} is about to be taken away: stopping in order")
                    return
            except Exception:  # noqa: BLE001 (a cluster that does not answer ends the run elsewhere, with a reason)
                continue

    thread = threading.Thread(target=watch, name="drain notices", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def drained_node() -> str | None:
    """The host name of a node that is being drained and that has this process or an actor of its job."""
    cluster: Any = ray_worker.global_worker  # Any: its attributes are set at run time
    draining = cluster.gcs_client.get_draining_nodes(timeout=_ANSWER_S)
    if not draining:
        return None
    context = ray.get_runtime_context()
    job = ray.JobID.from_hex(context.get_job_id())
    actors = cluster_state.state.actor_table(None, job, "ALIVE")
    ours = {context.get_node_id(), *(actor["Address"]["NodeID"] for actor in actors.values())}
    taken = {node if isinstance(node, str) else node.hex() for node in draining} & ours
    return next((node["NodeManagerHostname"] for node in ray.nodes() if node["NodeID"] in taken), None)
