"""How a tiny checkpoint is written: sizes, and all files that a directory of the hub has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

WIDE = 0.3  # standard deviation of the weights: wide, so that no two logits are close
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": WIDE,
}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": WIDE,
}
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

WRITERS: dict[str, Callable[[Path], None]] = {}


def checkpoint(writer: Callable[[Path], None]) -> Callable[[Path], None]:
    """Registers a function that writes the checkpoint of its name."""
    WRITERS[writer.__name__] = writer
    return writer


def save(
    folder: Path,
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    chat: str | None,
    ends: list[str],
    pictures: Any = None,
    processor: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """All files of one checkpoint. `pictures` is the image processor, `processor` the class that joins the two."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # biases and norms must not be those of a fresh model, and some maps are 0
            if weight.ndim == 1 or not weight.any():
                weight += WIDE * torch.randn_like(weight)
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(end) for end in ends]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(folder)
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    if pictures is not None:
        pictures.save_pretrained(folder)
        described = {"processor_class": processor, **(settings or {})}
        (folder / "processor_config.json").write_text(json.dumps(described, indent=2))


def ids(tokenizer: PreTrainedTokenizerFast, **tokens: str) -> dict[str, Any]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
