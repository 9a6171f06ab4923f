"""Tiny checkpoints of models without pictures."""

from __future__ import annotations

from pathlib import Path

import transformers as hf

from tests.families import chats
from tests.families.alphabets import byte_level, starting
from tests.families.writing import CHATML, TEXT, checkpoint, save


@checkpoint
def llama(folder: Path) -> None:
    """A chat model of Llama 3's kind without pictures."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = byte_level(specials, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    config = hf.LlamaConfig(**TEXT, vocab_size=len(tokenizer), tie_word_embeddings=False)
    tokenizer = starting(tokenizer, "<|begin_of_text|>")
    save(folder, hf.LlamaForCausalLM, config, tokenizer, chat=chats.LLAMA3, ends=["<|end_of_text|>", "<|eot_id|>"])


@checkpoint
def qwen3(folder: Path) -> None:
    """A chat model of Qwen3's kind without pictures."""
    tokenizer = byte_level(CHATML, added=["<think>", "</think>"], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    config = hf.Qwen3Config(**TEXT, vocab_size=len(tokenizer), head_dim=8, tie_word_embeddings=True)
    save(folder, hf.Qwen3ForCausalLM, config, tokenizer, chat=chats.QWEN3, ends=["<|im_end|>", "<|endoftext|>"])
