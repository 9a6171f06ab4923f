"""Tiny processors and models of other families than LLaVA-1.5's: byte-level tokens, a chat template of their own."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

# How templates print the parts of a message.
_PARTS = "{% for p in m.content %}{{ '<image>\n' if p.type == 'image' else p.text }}{% endfor %}"
_HEAD = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
# Llama 3 writes its start token itself, ChatML has none, and the third form leaves it to the tokenizer.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}" + _HEAD + _PARTS + "<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n" + _PARTS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A: ' }}"
    + _PARTS
    + "{{ ' ' if m.role == 'user' else '</s>' }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
SPECIAL = {  # the start token or none, the end of a turn, then the rest
    LLAMA3: ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    CHATML: (None, "<|im_end|>", "<|im_start|>", "<|endoftext|>"),
    PLAIN: ("<s>", "</s>", "<unk>"),
}


def byte_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens of a template's family."""
    start, end, *rest = SPECIAL[template]
    special = [token for token in (start, end, *rest, "<image>") if token is not None]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer, special, start=start, end=end)


def word_tokenizer(tokens: list[str], special: list[str], *, start: str | None, end: str) -> PreTrainedTokenizerFast:
    """Whole words with the blank before them, line breaks apart: prompts can be written out token by token."""
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*special, *tokens]))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<none>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?[^\s]+| "), "isolated")
    return _fast(tokenizer, special, start=start, end=end)


def _fast(tokenizer: Tokenizer, special: list[str], *, start: str | None, end: str) -> PreTrainedTokenizerFast:
    """Puts `start` before every text and ends turns with `end`."""
    if start is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=end,
        additional_special_tokens=[token for token in special if token not in (start, end)],
    )


def processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> LlavaProcessor:
    """Pictures of 64 pixels in 16 patches."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def write_chat_model(folder: Path, template: str, *, generation: GenerationConfig | None = None) -> Path:
    """A model directory with a byte-level tokenizer and this chat template; two layers of width 64."""
    tokenizer = byte_tokenizer(template)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, image_seq_length=16)
    )
    model.generation_config = generation or GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    processor(tokenizer, template).save_pretrained(folder)
    return folder
