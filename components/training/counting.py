"""How large a run's model and method are, before any weight is read: both are built on the meta device and counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from components.methods.base import Method, MethodConfig, TaskInfo
from components.models.config import BackboneConfig
from components.models.shape import ModelShape, model_shape
from components.models.source import DTYPES, model_source, remembered
from components.training.measuring import encoder_key

if TYPE_CHECKING:
    from components.models.backbone import Backbone

INSTRUCTIONS = ("What colour is the left bird?", "How many wheels does it have?")


@dataclass(frozen=True, kw_only=True)
class MethodSize:
    """What a method adds to the model."""

    trainable: tuple[int, ...]
    """Numbers of each tensor that trains in the first task."""
    growth: int
    """Numbers that each further task adds and that stay in memory."""
    kept: int
    """Numbers kept for the backward pass per token: the inputs of adapted layers, which neighbours share, and ranks."""
    per_token: int
    """Adapter weights that a token is multiplied with: each costs two operations."""
    widest: int
    """Of the widest adapted layer: its input and two of its outputs, per token."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A model's shape and its method's size; `method` is None where the method needs real weights to be built."""

    shape: ModelShape
    method: MethodSize | None
    frozen: tuple[int, ...]
    """Numbers of each frozen tensor."""


def counted(backbone: BackboneConfig, method: MethodConfig) -> Counted:
    """Build both without weights and count; what was counted once is kept in the cache."""
    key = json.dumps([encoder_key(backbone), backbone.dtype, method.name, method.options()], sort_keys=True)
    found = json.loads(remembered(f"counted {key}", lambda: json.dumps(asdict(_count(backbone, method)))))
    size = found["method"]
    return Counted(
        shape=ModelShape(**found["shape"]),
        method=None if size is None else MethodSize(**{**size, "trainable": tuple(size["trainable"])}),
        frozen=tuple(found["frozen"]),
    )


def _count(backbone: BackboneConfig, config: MethodConfig) -> Counted:
    from components.models.backbone import Backbone  # imports transformers
    from components.models.encoding import build_encoder

    source, family = model_source(backbone), build_encoder(backbone).family

    def build() -> Backbone:
        plain = replace(backbone, gradient_checkpointing=False)
        return Backbone(source.skeleton(), family=family, config=plain, fingerprint="")

    model = build()
    return Counted(
        shape=model_shape(model, width=DTYPES[backbone.dtype].itemsize),
        method=_first_that_works(lambda: _method_size(build(), config)),
        frozen=tuple(parameter.numel() for parameter in model.parameters()),
    )


def _first_that_works(size: Callable[[], MethodSize]) -> MethodSize | None:
    """As it is; with made-up numbers for those that are read from weights; None where both fail."""
    for scope in (nullcontext, made_up_numbers):
        try:
            with scope():
                return size()
        except (RuntimeError, NotImplementedError):  # what torch raises where there are no numbers to read
            continue
    return None


def _method_size(model: Backbone, config: MethodConfig) -> MethodSize:
    if "sentence_encoder" in config.options():  # only the size of its keys would differ, by a few thousand numbers
        config = replace(config, **{"sentence_encoder": "hash"})
    method = config.build(seed=0)
    method.attach(model, None)
    if not method.is_trainable:
        return MethodSize(trainable=(), growth=0, kept=0, per_token=0, widest=0)
    method.begin_task(model, _task(0))
    trainable = tuple(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    kept, per_token, widest = _beside_linear_layers(model)
    return MethodSize(
        trainable=trainable,
        growth=_growth(method, model, sum(trainable)),
        kept=kept,
        per_token=per_token,
        widest=widest,
    )


def _beside_linear_layers(model: Backbone) -> tuple[int, int, int]:
    """Of the language model's layers with something that trains beside their weight: numbers kept per token, trainable
    weights that a token meets, and the numbers of the widest layer's input and two outputs.

    The last linear layer of a block (o_proj, down_proj) reads what the block has computed; the others read the block's
    input, which is kept once for all of them.
    """
    kept = per_token = widest = 0
    for block in model.language_model.modules():
        linears = [child for child in block.children() if isinstance(child, nn.Linear)]
        shared = False
        for place, linear in enumerate(linears):
            added = [p for name, p in linear.named_parameters() if name not in ("weight", "bias") and p.requires_grad]
            if not added:
                continue
            is_last = place == len(linears) - 1
            if is_last or not shared:
                kept += linear.in_features
            shared = shared or not is_last
            kept += sum(p.shape[0] for p in added if p.dim() == 2 and p.shape[1] == linear.in_features)
            per_token += sum(p.numel() for p in added)
            widest = max(widest, linear.in_features + 2 * linear.out_features)
    return kept, per_token, widest


def _growth(method: Method, model: Backbone, first: int) -> int:
    """What a second task adds. The first is not ended for it: where a method cannot do without, it is taken to add as
    much as the first.
    """
    before = sum(parameter.numel() for parameter in method.parameters().values())
    if method.config.data_scope != "each":
        return 0
    try:
        method.tasks.append("task 0")
        method.begin_task(model, _task(1))
    except (RuntimeError, KeyError, IndexError, AssertionError, ValueError):
        return first
    return sum(parameter.numel() for parameter in method.parameters().values()) - before


def _task(index: int) -> TaskInfo:
    return TaskInfo(index=index, name=f"task {index}", instructions=[INSTRUCTIONS[index]])


@contextmanager
def made_up_numbers() -> Iterator[None]:
    """A scope with all tensors on the meta device, where a number read from one is 1: sizes do not depend on it."""
    with torch.device("meta"), _MadeUp():
        yield


class _MadeUp(TorchDispatchMode):
    def __torch_dispatch__(  # as the base class has it
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0 if args[0].dtype.is_floating_point else 1
        if func is torch.ops.aten._to_copy.default and args[0].is_meta:
            given["device"] = torch.device("meta")
        if func is torch.ops.aten.copy_.default and args[1].is_meta:
            return args[0]
        return func(*args, **given)
