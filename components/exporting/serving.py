"""What servers accept of a LoRA, as far as it can be known without running them.

vLLM takes `--max-lora-rank` from a fixed list, 16 by default (vllm/config/lora.py, 0.14 to 0.27), adapts the language
model only, reads r and lora_alpha but no patterns, and no modules_to_save (vllm/lora/peft_helper.py). SGLang takes any
rank and module names without their path (sglang/srt/lora).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def vllm_rank(rank: int) -> int | None:
    """The smallest `--max-lora-rank` of vLLM that takes an adapter of this rank; None: no value does."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def serving_notes(base: str, adapters: Mapping[str, str], rank: int, *, projector: bool) -> list[str]:
    """Commands that serve `adapters` (folders by name) of this rank with vLLM and SGLang, or a sentence why not."""
    named = [f"{name}={shlex.quote(folder)}" for name, folder in adapters.items()]
    allowed = vllm_rank(rank)
    if projector:
        return ["vLLM takes no adapter with a projector (modules_to_save); export it merged to serve it there."]
    if allowed is None:
        return [f"The rank, {rank}, is above the largest that vLLM takes ({VLLM_RANKS[-1]}); export it merged."]
    several = f" --max-loras {len(named)}" if len(named) > 1 else ""
    return [
        f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {allowed}{several} "
        f"--lora-modules {' '.join(named)}",
        f"python -m sglang.launch_server --model-path {shlex.quote(base)} --enable-lora --max-lora-rank {rank} "
        f"--lora-paths {' '.join(named)}",
    ]
