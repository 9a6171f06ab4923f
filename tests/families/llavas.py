"""Tiny checkpoints of the LLaVA line."""

from __future__ import annotations

from pathlib import Path

import transformers as hf

from tests.families import chats
from tests.families.alphabets import byte_level
from tests.families.writing import CHATML, TEXT, VISION, checkpoint, ids, save
from tests.unit.llava_checkpoint import llama_like_tokenizer, write_checkpoint


@checkpoint
def llava(folder: Path) -> None:
    """LLaVA-1.5: CLIP, Llama, one picture is a square of patches."""
    write_checkpoint(folder, layers=3)


@checkpoint
def llava_interleave(folder: Path) -> None:
    """LLaVA-interleave: SigLIP without a class token, Qwen2."""
    tokenizer = byte_level([*CHATML, "<image>"], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    config = hf.LlavaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=28, patch_size=14, vision_use_head=False),
        text_config=hf.Qwen2Config(**TEXT, vocab_size=len(tokenizer), tie_word_embeddings=True),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        **ids(tokenizer, image_token_index="<image>"),
    )
    save(
        folder,
        hf.LlavaForConditionalGeneration,
        config,
        tokenizer,
        chat=chats.INTERLEAVE,
        ends=["<|im_end|>"],
        pictures=hf.SiglipImageProcessorPil(size={"height": 28, "width": 28}),
        processor="LlavaProcessor",
        settings={"patch_size": 14, "vision_feature_select_strategy": "full", "image_token": "<image>"},
    )


PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


@checkpoint
def llava_next(folder: Path) -> None:
    """LLaVA-NeXT (v1.6, Mistral): CLIP on the whole picture and on tiles, one token at the end of each line."""
    tokenizer = llama_like_tokenizer()
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, image_size=28, patch_size=14, projection_dim=24),
        text_config=hf.MistralConfig(**TEXT, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
        image_grid_pinpoints=PINPOINTS,
        **ids(tokenizer, image_token_index="<image>"),
    )
    save(
        folder,
        hf.LlavaNextForConditionalGeneration,
        config,
        tokenizer,
        chat=chats.LLAVA_NEXT,
        ends=["</s>"],
        pictures=hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS
        ),
        processor="LlavaNextProcessor",
        settings={
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
        },
    )


@checkpoint
def llava_onevision(folder: Path) -> None:
    """LLaVA-OneVision: SigLIP, tiles that are shrunk where they are too many, Qwen2."""
    tokenizer = byte_level([*CHATML, "<image>", "<video>"], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    pinpoints = [[28 * row, 28 * column] for row in range(1, 5) for column in range(1, 5)]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=28, patch_size=14, vision_use_head=False),
        text_config=hf.Qwen2Config(**TEXT, vocab_size=len(tokenizer), tie_word_embeddings=True),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=True,
        **ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )
    save(
        folder,
        hf.LlavaOnevisionForConditionalGeneration,
        config,
        tokenizer,
        chat=chats.INTERLEAVE,
        ends=["<|im_end|>"],
        pictures=hf.LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints),
        processor="LlavaOnevisionProcessor",
        settings={
            "num_image_tokens": 4,
            "vision_feature_select_strategy": "full",
            "image_token": "<image>",
            "video_token": "<video>",
            "vision_aspect_ratio": "anyres_max_9",
        },
    )
