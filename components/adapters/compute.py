"""In which precision adapters compute: the one place where their casts are made.

What trains is float32, always. In float32 compute an adapter's input is cast up and its arithmetic is exact. In
bfloat16 compute its weights are cast down, as under autocast, and the input stays as it is. Casts are shared:

- `shared` casts activations. The copy is kept on the tensor itself, so q, k and v (or gate and up), which read one
  tensor, share one copy, and it is gone when that tensor is.
- `weight` casts parameters. Inside `shared_weights` (one optimizer update, one batch of answers) each is cast once,
  however many micro-batches, recomputations or generated tokens there are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Compute = Literal["auto", "float32", "bfloat16"]

_MEMO = "_cast_for_adapters"  # the attribute of a tensor that holds its copy


@dataclass(frozen=True)
class _Memo:
    version: int  # of the tensor when it was copied: in-place changes count it up
    copy: Tensor


# By (id, dtype, whether gradients flow), with the parameter, so that its id stays its own.
_Casts = dict[tuple[int, torch.dtype, bool], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class _Scope:
    thread: int
    casts: _Casts


# The open scopes of all threads, in order. On GPUs gradient checkpointing recomputes in a thread of autograd's: one
# without a scope of its own is in the latest of them. A thread that has one never takes another thread's.
_scopes: list[_Scope] = []


def compute_of(model: nn.Module) -> Compute:
    """What `model` was configured with; float32 for a module that has no such option."""
    return getattr(getattr(model, "config", None), "adapter_compute", "float32")


def compute_dtype(compute: Compute, frozen: Tensor) -> torch.dtype:
    """The dtype that an adapter beside the weight `frozen` computes in."""
    if compute == "auto":
        fast = frozen.dtype == torch.bfloat16 and frozen.is_cuda
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if compute == "bfloat16" else torch.float32


def shared(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype`: the same copy for everyone who asks while `tensor` lives and does not change."""
    if tensor.dtype == dtype:
        return tensor
    # A leaf's gradient accumulator holds the leaf: the leaf, its copy and the copy's graph would be a cycle.
    if tensor.is_leaf and tensor.requires_grad:
        return tensor.to(dtype)
    memo: _Memo | None = getattr(tensor, _MEMO, None)
    flows = tensor.requires_grad and torch.is_grad_enabled()
    version = 0 if tensor.is_inference() else tensor._version
    if (
        memo is None
        or (memo.copy.dtype, memo.version, memo.copy.requires_grad) != (dtype, version, flows)
        or memo.copy.is_inference() != torch.is_inference_mode_enabled()
    ):
        memo = _Memo(version, tensor.to(dtype))
        setattr(tensor, _MEMO, memo)
    return memo.copy


def weight(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter or buffer in `dtype`; gradients reach the float32 master."""
    if parameter.dtype == dtype:
        return parameter
    # A copy would keep whole on every rank what ZeRO-3 partitions.
    casts = None if hasattr(parameter, "ds_id") else _open_casts()
    if casts is None:
        return parameter.to(dtype)
    key = id(parameter), dtype, parameter.requires_grad and torch.is_grad_enabled()
    if key not in casts:
        casts[key] = parameter, parameter.to(dtype)
    return casts[key][1]


def _open_casts() -> _Casts | None:
    thread, scopes = threading.get_ident(), [*_scopes]
    own = next((each for each in reversed(scopes) if each.thread == thread), None)
    latest = own or (scopes[-1] if scopes else None)
    return None if latest is None else latest.casts


@contextmanager
def shared_weights() -> Iterator[None]:
    """A scope in which no weight changes, so each is cast once. What is cast is dropped at its end."""
    scope = _Scope(threading.get_ident(), {})
    _scopes.append(scope)
    try:
        yield
    finally:
        _scopes.remove(scope)


def plus(output: Tensor, increment: Tensor) -> Tensor:
    """output + increment in the wider of both dtypes, written over `increment`, which nothing else may hold."""
    # ZeRO-3's hooks hand on views of their own making, which must not be written to.
    if increment._is_view() or increment.dtype.itemsize < output.dtype.itemsize:
        return output + increment
    return increment.add_(output)
