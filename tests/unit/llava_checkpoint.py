"""A tiny checkpoint of LLaVA-1.5's architecture on disk: CLIP tower, Llama, LlavaProcessor, Llama-like tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

CHARACTERS = [chr(code) for code in range(33, 127)]
MERGES = [("▁", "A"), ("▁", "U"), ("▁U", "S"), ("▁US", "E"), ("▁USE", "R"), ("t", "h"), ("▁", "th"), ("▁th", "e")]
# The shape of llava-hf/llava-1.5-7b-hf's own template: no system sentence, no end token.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def llama_like_tokenizer(*, size: int = 0) -> PreTrainedTokenizerFast:
    """Byte-fallback BPE with the word-boundary mark, a start token and `</s>`, as Llama's converted tokenizer.

    `size`: pieces before `<image>` at least; those that are missing are filled up with ones that no text has.
    """
    specials = ["<unk>", "<s>", "</s>"]
    pieces = [*specials, *[f"<0x{byte:02X}>" for byte in range(256)], "▁", *CHARACTERS]
    pieces += [first + second for first, second in MERGES]
    pieces += [f"<filler {number}>" for number in range(len(pieces), size)]
    pieces += ["<image>", "<pad>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    )


def write_checkpoint(folder: Path, *, seed: int = 0, layers: int = 2) -> Path:
    """Write model and processor with `save_pretrained`, as the published 7B directory was written."""
    tokenizer = llama_like_tokenizer()
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=24,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder
