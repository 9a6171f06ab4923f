"""Memory that one process needs to load a model from safetensors shards, beside the model itself. Linux only.

    python tests/benchmarks/loading.py [--layers 16]

The model is loaded as a worker loads it, in the files' precision and in another one, in a process of its own. Counted
is the largest anonymous memory (`RssAnon`: pages of files that are mapped are shared by all ranks and can be dropped)
above what the process had before, less the model where that is itself on the CPU. Aim: at most 1.1 shards.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from components.models.config import BackboneConfig
from components.models.source import model_source

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The checkpoint to write and load: random bfloat16 weights of a text model."""

    layers: int = 16
    shard: str = "100MB"


def main(options: Benchmark) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=options.layers,
            num_attention_heads=8,
            vocab_size=8000,
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size=options.shard)  # type: ignore[call-arg]
        shard = max(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        print(f"{sum(1 for _ in Path(folder).glob('*.safetensors'))} shards, the largest of {shard / MIB:.0f} MiB")
        for dtype in ("bfloat16", "float32"):
            done = subprocess.run([sys.executable, __file__, folder, dtype], check=True, capture_output=True, text=True)
            model, peak = (int(word) for word in done.stdout.split()[-2:])
            # bfloat16 weights stay mapped from the files: the model itself is no anonymous memory
            beside = peak - (model if dtype == "float32" else 0)
            print(
                f"as {dtype}: model {model / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB; beside the model "
                f"{beside / MIB:.0f} MiB = {beside / shard:.2f} shards  (aim <= 1.1)"
            )


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def load(folder: str, dtype: str) -> None:
    """Load, and print the model's bytes and the peak."""
    source = model_source(BackboneConfig(name=folder, dtype=dtype))  # type: ignore[arg-type]
    source.family_class()  # imports what loading imports
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = source.model()
    done.set()
    watcher.join()
    print(sum(each.numel() * each.element_size() for each in model.parameters()), max(peak[0], anonymous()) - before)


if __name__ == "__main__":
    if len(sys.argv) == 3 and Path(sys.argv[1]).is_dir():
        load(*sys.argv[1:])
    else:
        main(tyro.cli(Benchmark))
