"""DeepSpeed on one device, ZeRO 0, 2 and 3: the losses of plain PyTorch, and what the stages cost on a 7B model."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from proof_equality import exact_products
from proof_model import OPTIMIZER, RandomLlava, at_task, training_batch, update
from proof_record import Facts, Record, require
from proof_scale import Scale, forget_peak, peak_gib, timed
from proof_steps import random_llava
from toy_tasks import attached, fresh_backbone, tiny_config, toy_tasks

from components.models.backbone import Backbone
from components.training.engine import DeepSpeedEngine, Engine, TorchEngine
from components.training.optimizer import OptimizerConfig

STAGES: tuple[Literal[0, 2, 3], ...] = (0, 2, 3)
TOLERANCE = 2e-4  # relative: float32 sums in another order, amplified by the updates
METHODS = ("sequential_lora", "moelora", "continual_llava")


@contextmanager
def one_worker(device: torch.device) -> Iterator[None]:
    """A process group of this process alone: NCCL on a GPU, gloo on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        where = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": device.type}
        where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # DeepSpeed asks for them; nothing listens
        before = {name: os.environ.get(name) for name in where}
        os.environ |= where
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def losses(name: str, stage: Literal[0, 2, 3] | None, device: torch.device, *, updates: int) -> list[float]:
    """Of a method's updates on the pocket model, two micro batches each; stage None is plain PyTorch."""
    model = fresh_backbone().to(device)
    method = attached(tiny_config(name), model)
    (first, second) = toy_tasks(pictured=True)
    method.begin_task(model, first.info)
    model.to(device)
    config, batches = OptimizerConfig(learning_rate=1e-2), [first.batch, second.batch]
    engine = _engine(model, config, stage, micro=len(first.batch), accumulation=2, rates=method.learning_rates())
    found = [float(update(engine, model, method, batches)) for _ in range(updates)]
    engine.close()
    return found


def _engine(
    model: Backbone,
    config: OptimizerConfig,
    stage: Literal[0, 2, 3] | None,
    *,
    micro: int,
    accumulation: int,
    rates: dict[str, float],
) -> Engine:
    if stage is None:
        return TorchEngine(model, config, rates=rates, accumulation=accumulation)
    return DeepSpeedEngine(
        model, config, zero_stage=stage, micro_batch_size=micro, accumulation=accumulation, rates=rates
    )


def zero(record: Record, scale: Scale, folder: Path) -> None:
    """Equal losses first, then a step of LoRA on the 7B model under each stage."""
    device = torch.device(scale.device)
    require("deepspeed")
    exact_products()
    with one_worker(device):
        for name in METHODS:
            plain = losses(name, None, device, updates=scale.updates)
            for stage in STAGES:
                with record.measuring(f"{name}, ZeRO-{stage}, tiny model", budget_s=40) as facts:
                    found = losses(name, stage, device, updates=scale.updates)
                    apart = max(abs(a - b) / abs(a) for a, b in zip(plain, found, strict=True))
                    facts["losses"] = apart
                    assert apart <= TOLERANCE, f"its losses differ by {apart:.1e} from those of plain PyTorch"
        with random_llava(record, scale, folder) as llava:
            for stage in (None, *STAGES):
                name = "plain PyTorch" if stage is None else f"ZeRO-{stage}"
                with record.measuring(f"{name}, the random model", budget_s=40) as facts:
                    _time(facts, llava, stage)


def _time(facts: Facts, llava: RandomLlava, stage: Literal[0, 2, 3] | None) -> None:
    """A step of LoRA, and leaving the engine, which makes the model whole again."""
    scale = llava.scale
    batch = training_batch(llava.encoder, scale)
    with llava.backbone() as model:
        method = at_task(model, "sequential_lora", scale, llava.encoder)
        forget_peak(scale)
        engine = _engine(model, OPTIMIZER, stage, micro=len(batch), accumulation=1, rates=method.learning_rates())
        facts["step_s"] = timed(lambda: update(engine, model, method, [batch]), scale)
        facts["peak_gib"] = peak_gib(scale)
        started = time.perf_counter()
        engine.close()
        facts["close_s"] = time.perf_counter() - started
