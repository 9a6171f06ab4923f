"""Where training workers find each other: on one machine a store on loopback, which PyTorch would open to the network.

Light on purpose: Ray Train's controller process imports this module, and torch comes with it at most.
"""

from __future__ import annotations

import functools
import importlib
import ipaddress
import socket
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig


@dataclass
class LoopbackTorchConfig(TorchConfig):
    """Ray's, with a store that only this machine reaches where all workers are on it."""

    @property
    def backend_cls(self) -> type:
        return _LoopbackBackend


class _LoopbackBackend(TorchConfig().backend_cls):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:  # Any: Ray's own types
        worker_group.execute_single(0, keep_store_on_loopback)
        super().on_start(worker_group, backend_config)


def keep_store_on_loopback() -> None:
    """From now on, a store of this process whose address is loopback listens there and not on every interface."""
    names = vars(importlib.import_module("torch.distributed.rendezvous"))  # its package has a function of this name
    if not isinstance(names["TCPStore"], functools.partial):
        names["TCPStore"] = functools.partial(_store, names["TCPStore"])


def _store(kind: Any, *, host_name: str, port: int, is_master: bool, **options: Any) -> Any:  # Any: of torch
    if is_master and _is_loopback(host_name):
        listening = socket.create_server((host_name, port), backlog=socket.SOMAXCONN)
        options["master_listen_fd"] = listening.detach()  # the store closes it
    return kind(host_name=host_name, port=port, is_master=is_master, **options)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: of another machine, or of this one on its network
