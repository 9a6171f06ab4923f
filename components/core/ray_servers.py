"""Which servers a Ray that we start has beside its node: none that one user's run never asks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray._private.node as node
import ray._private.parameter as parameter


@contextmanager
def only_needed_servers(*, logs: bool) -> Iterator[None]:
    """Nodes that are started in here get no dashboard and no autoscaler, and a log monitor only with `logs`.

    Each is a Python process that imports Ray: seconds of CPU time before a run begins. Without `include_dashboard` Ray
    2.60 still starts the dashboard's server, which then only reports usage. The autoscaler asks for nodes, and there is
    one; the log monitor does nothing but print workers' lines on the driver. `RayParams` has options for these two,
    `ray.init` has none.
    """
    options, dashboard = parameter.RayParams, node.Node.start_api_server
    parameter.RayParams = functools.partial(  # type: ignore[assignment, misc]  (called, and not used as a class)
        options,
        no_monitor=True,
        include_log_monitor=logs,  # type: ignore[arg-type]  (its annotation says a text, Ray itself gives True)
    )
    node.Node.start_api_server = _no_dashboard  # type: ignore[method-assign]
    try:
        yield
    finally:
        parameter.RayParams = options  # type: ignore[misc]
        node.Node.start_api_server = dashboard  # type: ignore[method-assign]


def _no_dashboard(self: node.Node, **options: Any) -> None:  # Any: as Ray has it
    self._webui_url = ""  # what Ray's own gives without `include_dashboard`
