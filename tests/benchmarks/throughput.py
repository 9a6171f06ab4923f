"""Speed as ratios, side by side in one process, so that a busy or a slow machine moves both sides alike.

    python tests/benchmarks/throughput.py [--backbone smol|pocket] [--parts steps methods routing evaluation]

- **steps**: our training step (collate, route, forward, backward, clip, AdamW) against a bare PyTorch + peft loop: the
  same Hugging Face model with the same attention, the same batches and optimizer, LoRA of rank 32 on `o_proj`. Aim:
  at least 0.95 of its throughput. Two of our gains are named apart: logits only at supervised positions (the bare loop
  is timed with and without), and the cache of vision features (off in every line that does not say so).
- **methods**: a Continual LLaVA step against a plain LoRA step of equal active rank on the same layers, in the first
  task and in the fourth, whose contextual increments use every earlier task. Aim: at most 1.05 of its time.
  A MoELoRA step against a LoRA step of equal rank, both on all linear layers. Aim: at most 1.3 of its time.
- **routing**: every method that routes answers batches whose rows belong to all four learned tasks, against plain LoRA
  on the same layers. Aim: at most 1.3 of its time. Rows of the small backbones are short (`smol`: 16 tokens a picture),
  so methods that put prompts before them pay more there than anywhere else: `--extra-tokens 560` gives the rows about
  the length that LLaVA-1.5's have (576 tokens a picture).
- **evaluation**: greedy answers in batches of 16 against one by one. Aim: at least 5 times as many per second.

Contestants take turns in every repeat, in alternating order; a figure is the median over repeats, a ratio is the median
of the ratios within a repeat, and brackets hold the smallest and the largest. Before timing, all contestants must give
the same loss on the same batch. Run it on an otherwise idle machine: the load average is printed.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import tyro
from contestants import (
    ALPHA,
    BATCH_SIZE,
    RANK,
    Data,
    Step,
    adapted,
    bare_step,
    continual_config,
    lora_config,
    our_step,
)

from components.core.machine import usable_cpus
from components.data.batch import Example
from components.evaluation.generation import answer
from components.methods import METHODS, options_for
from components.methods.base import MethodConfig
from components.methods.moelora import MoeLoraConfig
from components.models.config import BackboneConfig

Part = Literal["steps", "methods", "routing", "evaluation"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What to measure and how often."""

    backbone: str = "smol"
    parts: tuple[Part, ...] = ("steps", "methods", "routing", "evaluation")
    repeats: int = 5
    updates: int = 4
    """Optimizer updates per contestant and repeat, one task's rows each."""
    prompts: int = 64
    """Prompts answered per contestant and repeat, the same number from every task."""
    max_new_tokens: int = 8
    extra_tokens: int = 0
    """Tokens added in front of every prompt of routing and evaluation, to stand for a picture of more tokens."""
    only: tuple[str, ...] = ()
    """Of the routed methods, these; all unless given."""
    threads: int | None = None
    """torch threads; None takes all cores."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Something to time: `run` does `units` units of work."""

    name: str
    run: Callable[[], None]
    units: int


Times = dict[str, list[float]]  # contestant -> seconds per unit, one per repeat


def main(options: Benchmark) -> None:
    if unknown := set(options.only) - set(METHODS):
        sys.exit(f"error: --only names {', '.join(sorted(unknown))}; methods are {', '.join(METHODS)}.")
    torch.set_num_threads(options.threads or usable_cpus())
    torch.manual_seed(0)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print_load("before")
    backbone = BackboneConfig(name=options.backbone)
    data = Data(backbone, num_batches=options.updates, num_prompts=options.prompts, extra_tokens=options.extra_tokens)
    lengths = sorted(len(prompt.input_ids) for prompts in data.prompts for prompt in prompts)
    print(
        f"backbone {options.backbone}, batches of {BATCH_SIZE}, {options.updates} updates x {options.repeats} repeats, "
        f"prompts of {lengths[0]} to {lengths[-1]} tokens, {options.extra_tokens} of them added"
    )
    parts = {
        "steps": compare_steps,
        "methods": compare_methods,
        "routing": compare_routing,
        "evaluation": compare_evaluation,
    }
    for part in options.parts:
        parts[part](options, backbone, data)
    print_load("after")


def compare_steps(options: Benchmark, backbone: BackboneConfig, data: Data) -> None:
    """Our step against the bare loop."""
    bare, bare_short = "bare loop, logits everywhere", "bare loop, supervised logits"
    ours = {"torch": "ours, torch engine", "deepspeed": "ours, DeepSpeed ZeRO-2"}
    cached = "ours, DeepSpeed ZeRO-2, cached features"
    deepspeed = our_step(lora_config(), backbone, data, engine="deepspeed")
    steps = {
        bare: bare_step(backbone, data, supervised_logits=False),
        bare_short: bare_step(backbone, data, supervised_logits=True),
        ours["torch"]: our_step(lora_config(), backbone, data),
        ours["deepspeed"]: deepspeed,
    }
    require_equal_losses(steps, data.pixels[0])
    contestants = [training(name, step, data.pixels) for name, step in steps.items()]
    times = measure([*contestants, training(cached, deepspeed, data.features)], options.repeats)
    print_times("steps", "ms per update", times)
    for name in (*ours.values(), cached):
        for baseline in (bare, bare_short):
            print_ratio(f"throughput of {name} / {baseline}", times[baseline], times[name], "aim >= 0.95")
    print_ratio(f"throughput of {bare_short} / {bare}", times[bare], times[bare_short], "what those logits cost")


def compare_methods(options: Benchmark, backbone: BackboneConfig, data: Data) -> None:
    """Continual LLaVA's step against plain LoRA's, both with the plain engine and cached features."""
    lora, continual = "LoRA, rank 32", "Continual LLaVA, task {}, active rank 32"
    last = len(data.tasks) - 1
    steps = {
        lora: our_step(lora_config(), backbone, data),
        continual.format(1): our_step(continual_config(options.backbone), backbone, data),
        continual.format(last + 1): our_step(continual_config(options.backbone), backbone, data, task=last),
    }
    require_equal_losses(steps, data.features[0])
    times = measure([training(name, step, data.features) for name, step in steps.items()], options.repeats)
    print_times("methods", "ms per update", times)
    for name in list(steps)[1:]:
        print_ratio(f"time of {name} / {lora}", times[name], times[lora], "aim <= 1.05")

    wide, experts = "LoRA, rank 32, all linear layers", "MoELoRA, rank 32 in 4 experts"
    steps = {
        wide: our_step(replace(lora_config(), targets="all_linear"), backbone, data),
        experts: our_step(MoeLoraConfig(rank=RANK, alpha=ALPHA), backbone, data),
    }
    require_equal_losses(steps, data.features[0])
    times = measure([training(name, step, data.features) for name, step in steps.items()], options.repeats)
    print_times("experts", "ms per update", times)
    print_ratio(f"time of {experts} / {wide}", times[experts], times[wide], "aim <= 1.3")


def compare_routing(options: Benchmark, backbone: BackboneConfig, data: Data) -> None:
    """Answers to batches that mix all tasks: each routed method after four tasks against plain LoRA after four."""
    mixed = [list(rows) for rows in zip(*(batched(task, 4) for task in data.prompts), strict=True)]
    batches = [[example for part in parts for example in part] for parts in mixed]
    for targets in ("o_proj", "all_linear"):
        plain = f"LoRA, {targets}"
        contestants: dict[str, MethodConfig] = {plain: replace(lora_config(), targets=targets)}
        for name, kind in METHODS.items():
            config = options_for(name, backbone)
            routed = kind.export != "plain" and not kind.needs_task_id and name in (options.only or METHODS)
            if routed and getattr(config, "targets", "o_proj") == targets:
                contestants[name] = config
        if len(contestants) == 1:
            continue
        entries = [answering(name, config, backbone, data, batches, options) for name, config in contestants.items()]
        times = measure(entries, options.repeats)
        print_times(f"mixed routing, {targets}", "ms per answer", times)
        for name in list(contestants)[1:]:
            print_ratio(f"time of {name} / {plain}", times[name], times[plain], "aim <= 1.3")


def answering(
    name: str,
    config: MethodConfig,
    backbone: BackboneConfig,
    data: Data,
    batches: Sequence[list[Example]],
    options: Benchmark,
) -> Contestant:
    """The method after all tasks but without training: increments are zero, so all answers are equally long."""
    model, method = adapted(config, backbone, data, task=len(data.tasks))

    def run() -> None:
        for prompts in batches:
            answer(
                model,
                method,
                data.encoder,
                prompts,
                batch_size=len(prompts),
                max_new_tokens=options.max_new_tokens,
                device=torch.device("cpu"),
            )

    return Contestant(name=name, run=run, units=sum(map(len, batches)))


def batched(items: Sequence[Example], size: int) -> list[Sequence[Example]]:
    """Parts of equal size."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def compare_evaluation(options: Benchmark, backbone: BackboneConfig, data: Data) -> None:
    """Answering prompts in batches of 16 against one by one; the adapters are in place."""
    model, method = adapted(lora_config(), backbone, data, task=0)
    texts: dict[int, list[str]] = {}

    def answer_all(batch_size: int) -> None:
        texts[batch_size] = [
            each.text
            for prompts in data.prompts  # task by task, as a row of the score matrix is filled
            for each in answer(
                model,
                method,
                data.encoder,
                prompts,
                batch_size=batch_size,
                max_new_tokens=options.max_new_tokens,
                device=torch.device("cpu"),
            )
        ]

    names = {size: f"batches of {size}" for size in (16, 1)}
    contestants = [
        Contestant(name=name, run=partial(answer_all, size), units=sum(map(len, data.prompts)))
        for size, name in names.items()
    ]
    times = measure(contestants, options.repeats)
    print_times("evaluation", "ms per answer", times)
    print_ratio("answers per second, batches of 16 / one by one", times[names[1]], times[names[16]], "aim >= 5")
    same = sum(first == second for first, second in zip(texts[16], texts[1], strict=True))
    print(f"  {same} of {len(texts[16])} answers are the same text")


def training(name: str, step: Step, batches: Sequence[Sequence[Example]]) -> Contestant:
    def run() -> None:
        for examples in batches:
            step(examples)

    return Contestant(name=name, run=run, units=len(batches))


def require_equal_losses(steps: dict[str, Step], examples: Sequence[Example]) -> None:
    """All adapters start as zero, so the first losses must agree: otherwise different work would be compared."""
    losses = {name: step(examples) for name, step in steps.items()}
    first = next(iter(losses.values()))
    different = {name: loss for name, loss in losses.items() if abs(loss - first) > 1e-4 * abs(first)}
    assert not different, f"the contestants disagree on the same batch: {losses}"


def measure(contestants: Sequence[Contestant], repeats: int) -> Times:
    """Time each contestant once per repeat, in alternating order, after one untimed round."""
    times: Times = {contestant.name: [] for contestant in contestants}
    for contestant in contestants:
        contestant.run()
    for repeat in range(repeats):
        for contestant in contestants if repeat % 2 == 0 else contestants[::-1]:
            started = time.perf_counter()
            contestant.run()
            times[contestant.name].append((time.perf_counter() - started) / contestant.units)
    return times


def print_times(title: str, unit: str, times: Times) -> None:
    print(f"\n{title} ({unit}: median [smallest - largest])")
    for name, values in times.items():
        low, middle, high = (1e3 * value for value in (min(values), statistics.median(values), max(values)))
        print(f"  {name:42} {middle:9.1f} [{low:.1f} - {high:.1f}]")


def print_ratio(name: str, numerator: Sequence[float], denominator: Sequence[float], note: str) -> None:
    ratios = [above / below for above, below in zip(numerator, denominator, strict=True)]
    print(f"  {name}: {statistics.median(ratios):.2f} [{min(ratios):.2f} - {max(ratios):.2f}]  ({note})")


def print_load(when: str) -> None:
    print(f"load average {when}: {', '.join(f'{value:.1f}' for value in os.getloadavg())} on {usable_cpus()} CPUs")


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=(__doc__ or "").split("\n\n")[0]))
