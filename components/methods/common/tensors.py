"""The tensors of a method's state: out of its parameters, and back into them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from components.core.errors import CheckpointError


def copy_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU copies, which later training does not change."""
    partitioned = [name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter) and not tensor.numel()]
    if partitioned:
        raise RuntimeError(f"{partitioned[0]} is partitioned by ZeRO-3; gather all of method.parameters() first")
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def load_parameters(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into `parameters`; raises `CheckpointError` when a name or a shape differs."""
    different = sorted(set(parameters) ^ set(tensors))
    if different:
        raise CheckpointError(
            f"the checkpoint's adapters do not fit this backbone: {len(different)} tensors differ, first "
            f"{different[0]!r}; use the backbone it was trained on."
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise CheckpointError(
                f"the checkpoint's {name} has shape {list(tensors[name].shape)}, this backbone and method need "
                f"{list(parameter.shape)}; use the backbone and rank it was trained with."
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
