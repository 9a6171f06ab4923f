"""Who multiplies float32 matrices on CPUs while prompts are answered: MKL, or oneDNN.

Both compute in float32 and differ in the order of their sums. torch takes MKL, which uses AVX-512 on Intel's processors
alone; oneDNN uses it wherever it is, and is then up to twice as quick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from components.core.machine import cpu_vendor

Kernels = Literal["auto", "torch", "onednn"]

FEWEST_ROWS = 4  # below them a product is a pass over the weight, in which MKL is as quick or quicker


def takes_onednn(kernels: Kernels, device: torch.device) -> bool:
    """Whether products go to oneDNN. Decided by the processor's kind and never measured: a run that goes on after a
    stop on the same machine computes as before.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if kernels == "auto":
        wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
        return wide and cpu_vendor() == "AuthenticAMD" and torch.backends.mkl.is_available()
    return kernels == "onednn"


def quick_products(kernels: Kernels, device: torch.device) -> AbstractContextManager[object]:
    """A scope without gradients in which linear layers of float32 numbers are multiplied by the kernels chosen."""
    return _OneDnn() if takes_onednn(kernels, device) else nullcontext()


class _OneDnn(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and _fits(*args):
            input, weight, bias = args if len(args) == 3 else (*args, None)
            return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _fits(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        input.dtype == weight.dtype == torch.float32
        and input.numel() >= FEWEST_ROWS * input.shape[-1]
        and not torch.is_grad_enabled()
    )
