"""One adapted layer against peft's own, and what loading a model takes: ratios, both sides in one process.

    python tests/benchmarks/adapters.py [--width 2048] [--tokens 660] [--ranks 32 128]

- **layer**: forward and backward of a frozen linear layer with LoRA, ours against peft's `Linear`, on the same input.
  Time, and bytes of activations kept for the backward pass. Aim: at most 1.0 of peft's, in float32 and beside bfloat16
  weights, where peft is timed plain (its adapters then compute in float32) and under autocast.
- **casts**: copies into another dtype in one pass over q, k and v, which read one input.

Contestants take turns in every repeat, in alternating order; a figure is the median over repeats, a ratio the median of
the ratios within a repeat, and brackets hold the smallest and the largest.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import tyro
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from components.adapters.compute import Compute, shared_weights
from components.adapters.inject import inject_bank

Scope = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What to measure and how often."""

    width: int = 2048
    """Inputs and outputs of the layer."""
    tokens: int = 660
    batch: int = 4
    ranks: tuple[int, ...] = (32, 128)
    repeats: int = 9
    device: str = "cpu"
    threads: int = 1
    """torch threads; with one, the process's own time leaves out what a busy machine does meanwhile."""


class Block(nn.Module):
    """Linear layers that read one input."""

    def __init__(self, width: int, names: tuple[str, ...], dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self.names = names
        for name in names:
            linear = nn.Linear(width, width, bias=False, device=device, dtype=dtype)
            nn.init.normal_(linear.weight, std=0.02, generator=torch.Generator(device).manual_seed(0))
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.get_submodule(name)(x) for name in self.names]).sum(dim=0)


class Casts(TorchDispatchMode):
    """Counts copies into another dtype, and the bytes that they write."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and result.dtype != args[0].dtype:
            self.count += 1
            self.bytes += result.numel() * result.element_size()
        return result


def ours(options: Benchmark, names: tuple[str, ...], dtype: torch.dtype, rank: int, compute: Compute) -> nn.Module:
    block = Block(options.width, names, dtype, options.device)
    bank = inject_bank(block, {name: block.get_submodule(name) for name in names})  # type: ignore[arg-type]
    bank.add_group("lora", num_pairs=1, rank=rank, init="kaiming", seed=0)
    bank.mixing.rest_at("lora", 2.0)
    for layer in bank.layers.values():
        layer.compute = compute
    return block


def theirs(options: Benchmark, names: tuple[str, ...], dtype: torch.dtype, rank: int) -> nn.Module:
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(names))
    return get_peft_model(Block(options.width, names, dtype, options.device), config)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Contestant:
    """A model, and the scope that its forward pass runs in."""

    model: nn.Module
    scope: Scope = nullcontext

    def forward(self, x: Tensor) -> Tensor:
        with self.scope():
            return self.model(x)


def contestants(options: Benchmark, names: tuple[str, ...], dtype: torch.dtype, rank: int) -> dict[str, Contestant]:
    """By name; the first is what ours is compared with."""
    peft = theirs(options, names, dtype, rank)
    found = {"peft": Contestant(peft)}
    if dtype == torch.bfloat16:
        found["peft, autocast"] = Contestant(peft, lambda: torch.autocast(options.device, torch.bfloat16))
    found["ours, float32 compute"] = Contestant(ours(options, names, dtype, rank, "float32"))
    if dtype == torch.bfloat16:
        found["ours, bfloat16 compute"] = Contestant(ours(options, names, dtype, rank, "bfloat16"))
    return found


def activation_bytes(contestant: Contestant, x: Tensor) -> int:
    """Bytes kept for the backward pass, without parameters and without the layer's own input."""
    known = {each.untyped_storage().data_ptr() for each in (x, *contestant.model.parameters())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = contestant.forward(x)
    del output
    return sum(size for place, size in kept.items() if place not in known)


def seconds(contestant: Contestant, x: Tensor) -> float:
    """Of one forward and backward pass: on a GPU between events, on a CPU of this process's own time."""
    if x.is_cuda:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        contestant.forward(x).sum().backward()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3
    started = time.process_time()
    contestant.forward(x).sum().backward()
    return time.process_time() - started


def compare(options: Benchmark, dtype: torch.dtype, rank: int) -> None:
    passes = contestants(options, ("layer",), dtype, rank)
    source = torch.randn(options.batch, options.tokens, options.width, device=options.device, dtype=dtype)
    source.requires_grad_()
    x = source * 1.0  # as in a model, the input is itself computed
    outputs = {name: each.forward(x).detach().float() for name, each in passes.items()}
    for name, output in outputs.items():  # `up` is zero: all give what the frozen layer gives
        torch.testing.assert_close(output, outputs["peft"], rtol=2e-2, atol=2e-2, msg=name)
    times: dict[str, list[float]] = {name: [] for name in passes}
    with shared_weights():
        for repeat in range(options.repeats + 2):
            names = list(passes) if repeat % 2 else list(reversed(passes))
            for name in names:
                took = seconds(passes[name], (source * 1.0).detach().requires_grad_() * 1.0)
                if repeat >= 2:  # the first two warm up
                    times[name].append(took)
    print(f"\n{str(dtype).removeprefix('torch.')} weights, rank {rank}")
    for name, contestant in passes.items():
        kept = activation_bytes(contestant, source * 1.0)
        ratios = [mine / other for mine, other in zip(times[name], times["peft"], strict=True)]
        shown = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(
            f"  {name:24} {statistics.median(times[name]) * 1e3:8.1f} ms  time / peft {shown}  "
            f"kept {kept / 2**20:7.1f} MiB"
        )


def count_casts(options: Benchmark, rank: int) -> None:
    print(f"\ncasts of one pass over q, k and v, bfloat16 weights, rank {rank}, in the second micro batch of an update")
    for name, contestant in contestants(options, ("q", "k", "v"), torch.bfloat16, rank).items():
        x = torch.randn(options.batch, options.tokens, options.width, device=options.device, dtype=torch.bfloat16)
        with shared_weights():
            contestant.forward(x)
            with Casts() as casts:
                contestant.forward(x.clone())
        print(f"  {name:24} {casts.count:3} casts, {casts.bytes / 2**20:7.1f} MiB written")


def main(options: Benchmark) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    card = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    print(f"{card}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options}")
    for dtype in (torch.float32, torch.bfloat16):
        for rank in options.ranks:
            compare(options, dtype, rank)
    count_casts(options, options.ranks[0])


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
