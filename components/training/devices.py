"""Which devices a run gets: the GPUs of this machine or of the Ray cluster, and whether it uses them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import ray
import torch

from components.core.ray_session import own_cpus
from components.training.config import ClusterConfig

# Peak of dense bfloat16 products in TFLOP/s, the makers' figures without sparsity, and memory in GiB where Ray's name
# says which. The longest name that is part of a device's name counts.
PEAKS: dict[str, float] = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100": 989.0,
    "H100 PCIe": 756.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "A40": 150.0,
    "A6000": 155.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "MI300X": 1307.0,
    "MI250": 362.0,
}
MEMORY_GIB: dict[str, float] = {
    "B200": 178.0,
    "H200": 139.0,
    "H100": 79.0,
    "A100-80G": 79.0,
    "A100-40G": 39.0,
    "L40S": 44.0,
    "L4": 22.0,
    "A10G": 22.0,
    "T4": 14.0,
    "V100": 15.0,
}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of a Ray cluster, as Ray counts what it has."""

    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What there is. `gpus` is None for a cluster that has not been joined yet."""

    gpus: int | None
    name: str = ""
    """Of a GPU, as its driver or Ray calls it."""
    memory: int | None = None
    """Bytes of one GPU; None: unknown."""
    nodes: tuple[Node, ...] = ()
    """Of the cluster; none: unknown."""

    @property
    def peak(self) -> float | None:
        """Dense bfloat16 TFLOP/s of one GPU; None for a card that is not in the table."""
        return _longest(PEAKS, self.name)

    def described(self) -> str:
        """`8 x NVIDIA H100 80GB HBM3, 79 GiB each`."""
        if self.gpus is None:
            return "known when the cluster is joined"
        if not self.gpus:
            return "none"
        memory = "" if self.memory is None else f", {self.memory / 2**30:.0f} GiB each"
        return f"{self.gpus} x {self.name or 'GPU'}{memory}"


def with_labels(labels: Sequence[str]) -> dict[str, str]:
    """Ray's selector for nodes that have all of these labels, KEY=VALUE; none selects every node."""
    pairs = (label.partition("=") for label in labels)
    return {key: value for key, _, value in pairs}


def uses_gpu(use_gpu: Literal["auto"] | bool, gpus: int) -> bool:
    """Whether workers get a GPU each on a cluster with that many GPUs."""
    return gpus > 0 if use_gpu == "auto" else use_gpu


def planned_devices(cluster: ClusterConfig) -> Devices:
    """The devices of the Ray session that is open, else of this machine, where a run without an address starts Ray."""
    if ray.is_initialized():
        return cluster_devices()
    if cluster.address or os.environ.get("RAY_ADDRESS", "local") != "local":
        return Devices(gpus=None)
    count = torch.cuda.device_count()
    nodes = (Node(cpus=own_cpus(num_workers=cluster.num_workers), gpus=count),)
    if not count:
        return Devices(gpus=0, nodes=nodes)
    smallest = min(
        (torch.cuda.get_device_properties(number) for number in range(count)), key=lambda it: it.total_memory
    )
    return Devices(gpus=count, name=smallest.name, memory=smallest.total_memory, nodes=nodes)


def cluster_devices() -> Devices:
    """The devices of the Ray cluster that this process has joined; of several kinds, the one with the least memory."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    kinds = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")] if gpus else []
    sizes = {kind: _longest(MEMORY_GIB, kind) for kind in kinds}
    known = {kind: size for kind, size in sizes.items() if size is not None}
    name = min(known, key=lambda kind: known[kind]) if known else " or ".join(kinds)
    memory = int(known[name] * 2**30) if name in known else None
    return Devices(gpus=gpus, name=name, memory=memory, nodes=cluster_nodes())


def cluster_nodes() -> tuple[Node, ...]:
    """The nodes of the Ray cluster that this process has joined."""
    return tuple(
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            labels=node.get("Labels") or {},
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def _longest(table: dict[str, float], name: str) -> float | None:
    found = [known for known in table if known in name]
    return table[max(found, key=len)] if found else None
