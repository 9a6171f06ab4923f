"""Parameters that ZeRO-3 has partitioned: one rank's part of a value, and the way back to plain whole parameters."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


def own_partition(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a full value under ZeRO-3. DeepSpeed's own setter cannot pad what does not divide evenly."""
    size = cast("Tensor", parameter.ds_tensor).numel()  # pyright: ignore[reportAttributeAccessIssue]
    padding = size * dist.get_world_size() - value.numel()
    return torch.nn.functional.pad(value.flatten(), (0, padding)).narrow(0, size * dist.get_rank(), size)


def unpartition(deepspeed: object, model: nn.Module, engine: object) -> None:
    """Gather every ZeRO-3 parameter, destroy the engine, and turn the parameters back into plain ones.

    The next task's `deepspeed.initialize` would otherwise take them for already converted and skip the new hooks.
    Module by module: beside the whole copies, no more is gathered at any time than one module owns.
    """
    parameters: list[nn.Parameter] = []
    whole: list[Tensor] = []
    for module in model.modules():
        known = {id(parameter) for parameter in parameters}  # tied ones belong to several modules
        own = [each for each in module.parameters(recurse=False) if hasattr(each, "ds_id") and id(each) not in known]
        if own:
            with deepspeed.zero.GatheredParameters(own):  # type: ignore[attr-defined]
                whole += [parameter.data.detach().clone() for parameter in own]
            parameters += own
    engine.destroy()  # type: ignore[attr-defined]
    for parameter, data in zip(parameters, whole, strict=True):
        for name in [key for key in vars(parameter) if key not in ("requires_grad", "grad")]:
            delattr(parameter, name)
        parameter.data = data
    for module in model.modules():
        module._parameters = dict(module._parameters)  # DeepSpeed had put its own mapping here
        for name in [key for key in vars(module) if key.startswith("ds_")]:
            delattr(module, name)
        for name in ("_original_parameters", "_external_params"):
            vars(module).pop(name, None)
