"""Gradients with respect to frozen weights, from what goes into their layers and what comes back out of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn


class WeightGradients:
    """Sums of d loss / d W over the backward passes recorded, of some frozen linear layers y = W x + ... [d_out, d_in]:

        sum over tokens of (d loss / d y) x^T

    float32 on the layers' device, by the layers' names: d_out * d_in * 4 bytes each (67 MB at 4096 by 4096). Nothing
    has to require a gradient, and no weight gets one. The layers' inputs stay in memory until the backward pass, also
    under gradient checkpointing. `pop` hands one out and frees it here.
    """

    def __init__(self, layers: Mapping[str, nn.Linear]) -> None:
        self.layers = dict(layers)
        self.sums = {
            name: torch.zeros(layer.weight.shape, dtype=torch.float32, device=layer.weight.device)
            for name, layer in layers.items()
        }

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch every forward pass in this scope; its backward pass adds, inside or after the scope."""

        def add(name: str, inputs: Tensor, gradient: Tensor) -> None:
            rows = gradient.flatten(0, -2).float()
            self.sums[name].addmm_(rows.T, inputs.flatten(0, -2).float())

        def watch(name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.requires_grad_()  # the first layer's comes from frozen tensors only
            output.register_hook(partial(add, name, inputs[0].detach()))

        with ExitStack() as hooks:
            for name, layer in self.layers.items():
                hooks.callback(layer.register_forward_hook(partial(watch, name)).remove)
            yield

    def pop(self, name: str) -> Tensor:
        """The sum of layer `name`; it is not kept here any longer."""
        return self.sums.pop(name)
