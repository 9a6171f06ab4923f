"""Tiny checkpoints of models whose attention is not causal everywhere."""

from __future__ import annotations

from pathlib import Path

import transformers as hf

from tests.families import chats
from tests.families.alphabets import sentence_pieces
from tests.families.writing import TEXT, VISION, WIDE, checkpoint, ids, save


@checkpoint
def paligemma(folder: Path) -> None:
    """PaliGemma: SigLIP, Gemma, attention in both directions over picture and question. No chat template."""
    tokenizer = sentence_pieces(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"],
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    tokenizer.add_tokens([f"<loc{place:0>4}>" for place in range(1024)] + [f"<seg{code:0>3}>" for code in range(128)])
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(
            **VISION, image_size=28, patch_size=14, projection_dim=32, vision_use_head=False
        ),
        text_config=hf.GemmaConfig(**TEXT, vocab_size=len(tokenizer), head_dim=8, num_image_tokens=4),
        projection_dim=32,
        hidden_size=32,
        **ids(tokenizer, image_token_index="<image>"),
    )
    pictures = hf.SiglipImageProcessorPil(size={"height": 28, "width": 28}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pictures.image_seq_length = 4
    save(
        folder,
        hf.PaliGemmaForConditionalGeneration,
        config,
        tokenizer,
        chat=None,
        ends=["<eos>"],
        pictures=pictures,
        processor="PaliGemmaProcessor",
    )


@checkpoint
def gemma3(folder: Path) -> None:
    """Gemma 3: SigLIP, pooled to 4 tokens; two layers of three see a window; a picture's tokens see each other."""
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = sentence_pieces(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *names.values()],
        start="<bos>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=names,
    )
    text = hf.Gemma3TextConfig(
        **TEXT | {"initializer_range": 0.05},  # more would drown what the layers add, which is of size 1
        vocab_size=len(tokenizer),
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=16, patch_size=4, vision_use_head=False),
        text_config=text,
        mm_tokens_per_image=4,
        initializer_range=WIDE,
        **ids(
            tokenizer,
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
            image_token_index="<image_soft_token>",
        ),
    )
    save(
        folder,
        hf.Gemma3ForConditionalGeneration,
        config,
        tokenizer,
        chat=chats.GEMMA3,
        ends=["<eos>", "<end_of_turn>"],
        pictures=hf.Gemma3ImageProcessorPil(
            size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_pan_and_scan=False
        ),
        processor="Gemma3Processor",
        settings={"image_seq_length": 4},
    )
