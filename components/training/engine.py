"""Forward, backward, step: the one file that knows DeepSpeed, and a plain torch engine that serves as its oracle.

Both average gradients over workers, clip by global norm, step AdamW at accumulation boundaries and hand out optimizer
moments as plain tensors by parameter name, so that a checkpoint fits any world size and any ZeRO stage.
"""

from __future__ import annotations

import gc
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.data.batch import Batch
from components.methods.base import Selection
from components.training.buckets import zero_buckets
from components.training.deepspeed_import import import_deepspeed
from components.training.optimizer import (
    MOMENTS,
    GuardedAdamW,
    OptimizerConfig,
    build_optimizer,
    load_plain_moments,
    plain_moments,
    set_learning_rate,
    step_count,
)
from components.training.partitions import own_partition, unpartition

if TYPE_CHECKING:
    from components.models.backbone import Backbone, Outputs
    from components.training.config import RunConfig


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that train, by name, in module order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class TorchEngine:
    """Plain torch: all-reduced gradients and AdamW. The oracle for DeepSpeed, and the engine of tests without Ray."""

    def __init__(
        self,
        model: Backbone,
        config: OptimizerConfig,
        *,
        rates: Mapping[str, float] | None = None,
        accumulation: int = 1,
    ) -> None:
        """`rates`: see `build_optimizer`."""
        self.model = model
        self._config = config
        self._accumulation = accumulation
        self._micro_step = 0
        self._parameters = trainable_parameters(model)
        self._optimizer = build_optimizer(self._parameters, config, rates or {}, fused=on_gpu(self._parameters))
        self.grad_norm = torch.zeros(())
        if _world_size() > 1:
            for parameter in self._parameters.values():
                dist.broadcast(parameter.data, src=0)

    def forward(self, batch: Batch, enter: Callable[[], Selection]) -> tuple[Outputs, Selection]:
        """Enter the method's `select` scope by calling `enter`, then run the model; the caller leaves the scope."""
        selection = enter()
        return self.model(batch), selection

    def backward(self, loss: Tensor) -> None:
        (loss / self._accumulation).backward()
        self._micro_step += 1
        if self.at_boundary and _world_size() > 1:
            for parameter in self._parameters.values():
                if parameter.grad is None:  # a worker whose samples used other slots still takes part
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= _world_size()

    @property
    def at_boundary(self) -> bool:
        return self._micro_step % self._accumulation == 0

    def gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self._parameters.items() if p.grad is not None}

    def step(self) -> bool:
        if not self.at_boundary:
            return False
        self.grad_norm = self._optimizer.norm = clip(self._parameters.values(), self._config)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return True

    @property
    def skipped(self) -> bool:
        return not bool(torch.isfinite(self.grad_norm))

    def parameters(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def mean_over_workers(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return mean_over_workers(tensors)

    def set_learning_rate(self, rate: float) -> None:
        set_learning_rate(self._optimizer.param_groups, rate, self._config)

    @contextmanager
    def full_parameters(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        yield

    def optimizer_state(self) -> dict[str, Tensor]:
        return plain_moments(self._optimizer, self._parameters)

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        load_plain_moments(self._optimizer, self._parameters, state)

    def close(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)


class DeepSpeedEngine:
    """A DeepSpeed engine over the trainable parameters of one task; `close` gives back a plain model."""

    def __init__(
        self,
        model: Backbone,
        config: OptimizerConfig,
        *,
        zero_stage: Literal[0, 2, 3],
        micro_batch_size: int,
        accumulation: int = 1,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """`rates`: see `build_optimizer`."""
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        deepspeed = import_deepspeed()
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # On CPU DeepSpeed would compile a shared-memory all-reduce at the first use: tens of seconds, a compiler, and a
        # lock that a killed job leaves behind for ever. gloo serves as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=dist.get_backend())  # wraps the process group Ray has made
        self.model = model
        self._config = config
        self._deepspeed = deepspeed
        self._stage = zero_stage
        self._parameters = trainable_parameters(model)
        self.grad_norm = torch.zeros(())
        frozen = [parameter.numel() for parameter in model.parameters() if not parameter.requires_grad]
        self._engine: Any = deepspeed.initialize(  # its annotations name every optimizer it could hold
            model=_Scoped(model),
            optimizer=build_optimizer(
                self._parameters, config, rates or {}, fused=not zero_stage and on_gpu(self._parameters)
            ),
            config={
                "train_micro_batch_size_per_gpu": micro_batch_size,
                "gradient_accumulation_steps": accumulation,
                # At stage 0 DeepSpeed clips, but tells nobody the norm: `step` does both.
                "gradient_clipping": config.max_grad_norm if zero_stage else 0.0,
                "zero_allow_untested_optimizer": True,  # our own AdamW: no JIT build of a fused one
                "zero_optimization": {
                    "stage": zero_stage,
                    "overlap_comm": False,
                    **zero_buckets([each.numel() for each in self._parameters.values()], frozen, zero_stage),
                },
                "steps_per_print": 10**9,
            },
        )[0]
        if zero_stage == 2:  # DeepSpeed would link the moments of all groups when only the first group has stepped
            self._create_moments(torch.tensor(0.0))

    def forward(self, batch: Batch, enter: Callable[[], Selection]) -> tuple[Outputs, Selection]:
        """As `TorchEngine.forward`; the scope is entered inside, where ZeRO-3 gathers what `select` computes with."""
        return cast("tuple[Outputs, Selection]", self._engine(batch, enter))

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def gradients(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_grad

        found = {name: safe_get_full_grad(parameter) for name, parameter in self._parameters.items()}
        return {name: gradient for name, gradient in found.items() if gradient is not None}

    @property
    def at_boundary(self) -> bool:
        return bool(self._engine.is_gradient_accumulation_boundary())

    def step(self) -> bool:
        boundary = self.at_boundary
        if boundary and not self._stage:
            self.grad_norm = clip(self._parameters.values(), self._config)
            cast("GuardedAdamW", self._inner_optimizer).norm = self.grad_norm
        # Where DeepSpeed shards, it leaves out an update whose gradient is not finite, on all ranks, by itself.
        self._engine.step()
        if boundary and self._stage:
            self.grad_norm = torch.as_tensor(self._engine.get_global_grad_norm())
        return boundary

    @property
    def skipped(self) -> bool:
        return bool(self._engine.optimizer.overflow) if self._stage else not bool(torch.isfinite(self.grad_norm))

    def parameters(self) -> dict[str, Tensor]:
        if self._stage != 3:  # stages 0 and 2 leave every rank whole parameters after a step
            return {name: parameter.detach() for name, parameter in self._parameters.items()}
        from deepspeed.utils import safe_get_full_fp32_param

        values: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            value = safe_get_full_fp32_param(parameter)
            assert value is not None, f"DeepSpeed holds no values of {name}"
            values[name] = value
        return values

    def mean_over_workers(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return mean_over_workers(tensors)

    def set_learning_rate(self, rate: float) -> None:
        set_learning_rate(self._engine.optimizer.param_groups, rate, self._config)

    @contextmanager
    def full_parameters(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """A scope in which `parameters` are whole on every rank (a gather under ZeRO-3, nothing otherwise)."""
        if self._stage == 3:
            with self._deepspeed.zero.GatheredParameters(list(parameters)):
                yield
        else:
            yield

    def optimizer_state(self) -> dict[str, Tensor]:
        """Moments by `<parameter>.<moment>` plus the step count; a collective: every rank must call it."""
        if self._stage == 0:
            return plain_moments(self._inner_optimizer, self._parameters)
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            for moment in MOMENTS:
                value = safe_get_full_optimizer_state(parameter, moment)
                assert value is not None, f"DeepSpeed holds no {moment} of {name}"
                state[f"{name}.{moment}"] = value.detach().clone().cpu()
        state["step"] = step_count(self._inner_optimizer)
        return state

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `optimizer_state`, right after construction, under any stage and world size."""
        if self._stage == 0:
            load_plain_moments(self._inner_optimizer, self._parameters, state)
            return
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        self._create_moments(state["step"])
        for name, parameter in self._parameters.items():
            for moment in MOMENTS:
                value = state[f"{name}.{moment}"].to(parameter.device)
                if self._stage == 3:
                    safe_set_local_optimizer_state(parameter, own_partition(parameter, value), moment)
                else:
                    safe_set_full_optimizer_state(parameter, value, moment)

    def _create_moments(self, step: Tensor) -> None:
        """Adam's state as it is made at the first step: moments of zeros, so that there is something to set or read."""
        sharded, shards = self._engine.optimizer, "single_partition_of_fp32_groups"
        for flat in getattr(sharded, "fp32_partitioned_groups_flat" if self._stage == 3 else shards):
            zeros = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            self._inner_optimizer.state[flat] = {"step": step.clone(), **zeros}
        if self._stage == 2:
            sharded._hp_optimizer_states_linked = False
            sharded._lazy_init_hp_params_optimizer_state()

    @property
    def _inner_optimizer(self) -> torch.optim.Optimizer:
        return self._engine.optimizer if self._stage == 0 else self._engine.optimizer.optimizer

    def close(self) -> None:
        """Destroy the engine and leave the model as plain, whole tensors (ZeRO-3 partitions are gathered first)."""
        if self._stage == 3:
            unpartition(self._deepspeed, self.model, self._engine)
        else:
            self._engine.destroy()
        for parameter in self._parameters.values():
            parameter.grad = None
            for name in ("_hp_mapping", "_zero_optimizer", "_hp_grad"):
                vars(parameter).pop(name, None)
        del self._engine
        gc.collect()


class _Scoped(nn.Module):
    """What DeepSpeed wraps: a method's scope and the model in one forward pass."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, enter: Callable[[], Selection]) -> tuple[Outputs, Selection]:
        selection = enter()
        return self.model(batch), selection


Engine = TorchEngine | DeepSpeedEngine


def build_engine(model: Backbone, config: RunConfig, rates: Mapping[str, float], num_workers: int) -> Engine:
    """The engine that `config.training` asks for, over what trains now; `rates`: see `build_optimizer`."""
    training = config.training
    accumulation = training.accumulation(num_workers)
    if training.engine == "torch":
        return TorchEngine(model, config.optimizer, rates=rates, accumulation=accumulation)
    return DeepSpeedEngine(
        model,
        config.optimizer,
        zero_stage=training.zero_stage,
        micro_batch_size=training.micro_size(num_workers),
        accumulation=accumulation,
        rates=rates,
    )


def mean_over_workers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean of equally shaped tensors over all workers; every worker must call it with the same names.

    Single numbers travel together, in one message for each dtype and device.
    """
    if _world_size() == 1:
        return tensors
    result: dict[str, Tensor] = {}
    joined: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name in sorted(tensors):
        value = tensors[name].detach()
        if value.dim() == 0:
            joined.setdefault((value.dtype, value.device), []).append(name)
        else:
            result[name] = _mean(value.clone())
    for names in joined.values():
        result |= zip(names, _mean(torch.stack([tensors[name].detach() for name in names])).unbind(), strict=True)
    return result


def _mean(value: Tensor) -> Tensor:
    """The mean over workers; `value` is overwritten."""
    dist.all_reduce(value)
    return value / _world_size()


def gathered(items: list[str]) -> list[str]:
    """The items of all workers, in the order of their ranks; every worker must call it."""
    if _world_size() == 1:
        return items
    parts: list[list[str]] = [[] for _ in range(_world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def on_gpu(parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether what trains is on a GPU."""
    return any(parameter.is_cuda for parameter in parameters.values())


def clip(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> Tensor:
    """Clip the gradients by their norm over all parameters, and return what it was (a number on their device)."""
    return torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
