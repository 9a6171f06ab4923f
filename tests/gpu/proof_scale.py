"""How large the proof is: LLaVA-1.5-7B on a GPU, or the same parts in seconds on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

# Of LLaVA-1.5-7B: the arguments of LlamaConfig and CLIPVisionConfig that are not their defaults.
TEXT_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32064,
}
VISION_7B = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
    "image_size": 336,
    "patch_size": 14,
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of everything that is measured; the defaults are those of a GPU."""

    device: str = "cuda"
    matmul: int = 8192  # rows and columns of the matrices of the roofline
    copied_bytes: int = 1 << 31
    text: dict[str, Any] = field(default_factory=lambda: TEXT_7B)
    vision: dict[str, Any] = field(default_factory=lambda: VISION_7B)
    rows: int = 4  # of a micro batch
    tokens: int = 660  # of a training row, its picture included
    answer: int = 16  # supervised tokens of a row
    ranks: tuple[int, int] = (32, 128)  # of adapters
    depth: int = 4  # tasks, the last of which is measured
    warm: int = 2  # steps that are not timed
    repeats: int = 10  # steps that are
    reply_batches: tuple[int, ...] = (16, 64, 128)
    reply_tokens: int = 16
    updates: int = 5  # of a comparison of engines
    published: bool = True  # methods with their published options, not those for small backbones

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


SMALL = Scale(
    device="cpu",
    matmul=256,
    copied_bytes=1 << 20,
    text=dict(zip(TEXT_7B, (64, 96, 2, 4, 2048), strict=True)),
    vision=dict(zip(VISION_7B, (32, 48, 2, 2, 32, 56, 14), strict=True)),
    rows=2,
    tokens=48,
    answer=4,
    ranks=(4, 8),
    warm=1,
    repeats=2,
    reply_batches=(4,),
    reply_tokens=3,
    updates=3,
    published=False,
)


def timed(
    work: Callable[[], object], scale: Scale, *, repeats: int | None = None, warm: int | None = None
) -> list[float]:
    """Seconds of `work`: the median, the smallest and the largest. On a GPU, between two events on its own clock."""
    for _ in range(scale.warm if warm is None else warm):
        work()
    found = [_once(work, scale) for _ in range(repeats or scale.repeats)]
    return [statistics.median(found), min(found), max(found)]


def _once(work: Callable[[], object], scale: Scale) -> float:
    if not scale.on_gpu:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    before.record()
    work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1000


def forget_peak(scale: Scale) -> None:
    """Start to look for the highest memory use from here on."""
    if scale.on_gpu:
        torch.cuda.reset_peak_memory_stats()


def peak_gib(scale: Scale) -> float | None:
    """The card's memory in use at most since then, as PyTorch's allocator saw it; None without a card."""
    return torch.cuda.max_memory_allocated() / 2**30 if scale.on_gpu else None


@contextmanager
def float32_products() -> Iterator[None]:
    """Put back, at its end, how PyTorch makes float32 products: in TF32 or exactly."""
    matrices, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions
