"""A training step late in a stream, or with many slots, against one of plain LoRA: ratios, all sides in one process.

    python tests/benchmarks/growth.py [--rounds 5]

One update on 4 rows with cached vision features on `smol`. LoRA has rank 32, and so has what Continual LLaVA chooses
for a sample: 4 slots of rank 8. Contestants take turns in every round, in alternating order; a figure is the median
over rounds of the process's own time, a ratio the median of the ratios within a round, and brackets hold the smallest
and the largest. Earlier tasks count as learned; their increments are drawn, since one of zeros would cost less.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import tyro
from annotated_types import Ge

from components.data.batch import Example, collate
from components.methods.base import MethodConfig, TaskInfo
from components.methods.o_lora import OLoraConfig
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.training.engine import TorchEngine
from tests.benchmarks.bars import print_bar
from tests.benchmarks.contestants import OPTIMIZER, Data, Step, continual_config, lora_config

BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """How often to measure."""

    rounds: Annotated[int, Ge(1)] = 4
    """Rounds that count, after one that warms up."""
    threads: int = 1
    """torch threads; with one, the process's own time leaves out what a busy machine does meanwhile."""
    only: tuple[str, ...] = ()
    """Contestants whose names start so, beside LoRA; empty: all."""


@dataclass(frozen=True)
class Contestant:
    """A method at the start of its 0-based `task`, and what its step may cost at most, as a ratio."""

    name: str
    config: MethodConfig
    task: int = 0
    bar: float | None = None
    reason: str = ""  # why it is missed


EVERY_W = (
    "w is learned, so each update changes the weights of 31 earlier sums in every layer and wants a gradient for each: "
    "nothing constant is left to fold"
)
GATHERED = (
    "each sample's slots are gathered from the pool and looked up by its instruction, about 20 of a step's 1,160 ms, "
    "and AdamW goes over twice LoRA's numbers"
)
PENALTY = (
    "the published penalty multiplies 1,536 learned columns with the 32 new ones in 60 matrices, about 50 ms of "
    "a step's 1,200 with its gradient; it sums absolute values, so no smaller product stands for it"
)
ALL_FACTORS = (
    "AdamW goes over the factors of all 256 slots, 64 times LoRA's numbers; those not chosen are not multiplied"
)


def contestants(backbone: str) -> list[Contestant]:
    continual = continual_config(backbone)
    constant = replace(continual, contextual="constant")
    branch = OLoraConfig(rank=8, alpha=32.0)
    return [
        Contestant("LoRA", lora_config()),
        Contestant("Continual LLaVA, task 1", continual, bar=1.03, reason=GATHERED),
        Contestant("Continual LLaVA, task 4", continual, 3),
        Contestant("Continual LLaVA, task 16", continual, 15),
        Contestant("Continual LLaVA, task 32", continual, 31, bar=1.06, reason=EVERY_W),
        Contestant("Continual LLaVA, task 32, w constant", constant, 31, bar=1.06),
        Contestant("Continual LLaVA, 256 slots", replace(continual, slots_per_task=256), bar=1.05, reason=ALL_FACTORS),
        Contestant("O-LoRA of rank 8, task 16", branch, 15),
        Contestant("O-LoRA of rank 8, task 48", branch, 47, bar=1.05),
        Contestant("O-LoRA of rank 32, task 48", OLoraConfig(), 47, bar=1.05, reason=PENALTY),
    ]


def step_of(contestant: Contestant, backbone: BackboneConfig, data: Data, shared: dict[str, torch.Tensor]) -> Step:
    """One update of the method; the frozen model's weights are those in `shared`."""
    model = load_backbone(backbone)
    for name, parameter in model.named_parameters():
        parameter.data = shared.setdefault(name, parameter.data)
    method = contestant.config.build(seed=0)
    method.attach(model, None)
    generator = torch.Generator().manual_seed(0)
    for index in range(contestant.task + 1):
        known = data.task_info(index % len(data.tasks))
        info = TaskInfo(index=index, name=f"{known.name} {index}", instructions=known.instructions)
        method.begin_task(model, info)
        if index == contestant.task:
            break
        with torch.no_grad():
            for name, parameter in method.parameters().items():
                if parameter.requires_grad and name.endswith(".up"):
                    parameter.normal_(0.0, 1e-3, generator=generator)
        method.end_task(TorchEngine(model, OPTIMIZER), info, iter([]))
    engine = TorchEngine(model, OPTIMIZER, rates=method.learning_rates())
    pad_id = data.encoder.pad_id

    def step(examples: Sequence[Example]) -> float:
        model.train()
        batch = collate(examples, pad_id=pad_id, padding_side="right")
        with method.select(model, batch) as selection:
            outputs = model(batch)
            loss = method.loss(model, batch, outputs, selection)
            engine.backward(loss.total)
        assert method.step(engine)
        return float(loss.total.detach())

    return step


def main(options: Benchmark) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    backbone = BackboneConfig(name="smol")
    data = Data(backbone, num_batches=4, num_prompts=0)
    batches = [batch[:BATCH] for batch in data.features]
    shared: dict[str, torch.Tensor] = {}
    chosen = [each for each in contestants("smol") if not options.only or each.name.startswith(("LoRA", *options.only))]
    steps = {each.name: step_of(each, backbone, data, shared) for each in chosen}
    print(f"{options.threads} thread, torch {torch.__version__}, load {os.getloadavg()[0]:.0f}, {BATCH} rows")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.rounds + 1):
        for name in list(steps) if turn % 2 else list(reversed(steps)):
            started = time.process_time()
            steps[name](batches[turn % len(batches)])
            if turn:
                times[name].append(time.process_time() - started)
    for each in chosen:
        ratios = [mine / lora for mine, lora in zip(times[each.name], times["LoRA"], strict=True)]
        shown = f"{statistics.median(ratios):5.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"  {each.name:38} {statistics.median(times[each.name]) * 1e3:7.0f} ms  / LoRA {shown}")
        if each.bar is not None:
            print_bar(f"{each.name}: step / LoRA's", ratios, "at most", each.bar, each.reason)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
