"""A Ray of our own starts without the servers that no run asks; what was changed for that is put back."""

from __future__ import annotations

import pytest

from components.core import ray_servers
from components.core.ray_servers import only_needed_servers


@pytest.mark.parametrize("logs", [False, True])
def test_a_node_gets_no_autoscaler_no_dashboard_and_a_log_monitor_only_for_debugging(logs: bool) -> None:
    parameters, start = ray_servers.parameter.RayParams, ray_servers.node.Node.start_api_server
    with only_needed_servers(logs=logs):
        given = ray_servers.parameter.RayParams(num_cpus=4)
        assert (given.num_cpus, given.no_monitor, given.include_log_monitor) == (4, True, logs)
        assert ray_servers.node.Node.start_api_server is not start
    assert ray_servers.parameter.RayParams is parameters
    assert ray_servers.node.Node.start_api_server is start
    assert parameters(num_cpus=4).no_monitor is False
