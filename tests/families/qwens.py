"""Tiny checkpoints of the Qwen-VL line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import transformers as hf
from transformers import PretrainedConfig

from tests.families import chats
from tests.families.alphabets import byte_level
from tests.families.writing import CHATML, TEXT, WIDE, checkpoint, ids, save

QWEN_SPECIALS = [*CHATML, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_TEXT = {**TEXT, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}  # 16 numbers a head


def _save_qwen(
    folder: Path, kind: str, vision: PretrainedConfig, text: Callable[..., PretrainedConfig], *, chat: str, tied: bool
) -> None:
    """A Qwen-VL checkpoint; pictures keep their shape and may have 1 to 12 tokens."""
    tokenizer = byte_level(QWEN_SPECIALS, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    start, end = ids(tokenizer, bos_token_id="<|endoftext|>"), ids(tokenizer, eos_token_id="<|im_end|>")
    config = getattr(hf, f"{kind}Config")(
        vision_config=vision,
        text_config=text(vocab_size=len(tokenizer), tie_word_embeddings=tied, **start, **end),
        tie_word_embeddings=tied,
        **ids(
            tokenizer,
            image_token_id="<|image_pad|>",
            video_token_id="<|video_pad|>",
            vision_start_token_id="<|vision_start|>",
            vision_end_token_id="<|vision_end|>",
        ),
    )
    pictures = hf.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 64 * 12}
    )
    save(
        folder,
        getattr(hf, f"{kind}ForConditionalGeneration"),
        config,
        tokenizer,
        chat=chat,
        ends=["<|im_end|>", "<|endoftext|>"],
        pictures=pictures,
        processor=f"{kind}Processor",
    )


@checkpoint
def qwen2_vl(folder: Path) -> None:
    """Qwen2-VL: pictures of any shape, positions in time, height and width."""
    vision = hf.models.qwen2_vl.Qwen2VLVisionConfig(
        depth=2, embed_dim=24, hidden_size=48, num_heads=2, patch_size=4, initializer_range=WIDE
    )
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    text = partial(hf.Qwen2VLTextConfig, **QWEN_TEXT, rope_parameters=rope)
    _save_qwen(folder, "Qwen2VL", vision, text, chat=chats.QWEN2_VL, tied=True)


@checkpoint
def qwen2_5_vl(folder: Path) -> None:
    """Qwen2.5-VL: as Qwen2-VL, with windows of attention in the tower."""
    vision = hf.models.qwen2_5_vl.Qwen2_5_VLVisionConfig(
        depth=2,
        hidden_size=24,
        intermediate_size=48,
        num_heads=2,
        patch_size=4,
        window_size=16,
        out_hidden_size=48,
        fullatt_block_indexes=[1],
        initializer_range=WIDE,
    )
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    text = partial(hf.Qwen2_5_VLTextConfig, **QWEN_TEXT, rope_parameters=rope)
    _save_qwen(folder, "Qwen2_5_VL", vision, text, chat=chats.QWEN2_VL, tied=True)


@checkpoint
def qwen3_vl(folder: Path) -> None:
    """Qwen3-VL: features of earlier tower layers join the first layers of the language model."""
    vision = hf.models.qwen3_vl.Qwen3VLVisionConfig(
        depth=3,
        hidden_size=24,
        intermediate_size=48,
        num_heads=2,
        patch_size=4,
        out_hidden_size=48,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0, 1],
        initializer_range=WIDE,
    )
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = partial(hf.Qwen3VLTextConfig, **QWEN_TEXT, head_dim=16, rope_parameters=rope)
    _save_qwen(folder, "Qwen3VL", vision, text, chat=chats.QWEN3_VL, tied=False)
