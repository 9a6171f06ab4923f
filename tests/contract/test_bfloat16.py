"""Every method that trains, beside bfloat16 weights under gradient checkpointing.

Adapters that compute in bfloat16 learn as those that compute in float32 do, and what trains stays float32.
"""

from __future__ import annotations

import pytest
import torch
from toy_tasks import Toy, attached, learn, tiny_config

from components.adapters.compute import Compute
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig

UPDATES = 2


def losses(name: str, toys: list[Toy], compute: Compute) -> torch.Tensor:
    """Of every update of both tasks."""
    backbone = load_backbone(
        BackboneConfig(name="pocket", dtype="bfloat16", adapter_compute=compute, gradient_checkpointing=True)
    )
    torch.manual_seed(0)  # dropout draws the same in both
    method = attached(tiny_config(name), backbone)
    found = [each for task in toys for each in learn(method, backbone, task, updates=UPDATES)]
    assert all(parameter.dtype == torch.float32 for parameter in method.parameters().values())
    return torch.tensor(found)


@pytest.mark.training_methods
def test_bfloat16_compute_learns_as_float32_compute_does(name: str, toys: list[Toy]) -> None:
    exact, rounded = (losses(name, toys, compute) for compute in ("float32", "bfloat16"))
    assert len(exact) == len(toys) * UPDATES
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0.03)
