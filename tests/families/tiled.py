"""Tiny checkpoints of models that cut pictures into tiles or lines of tokens."""

from __future__ import annotations

from pathlib import Path

import transformers as hf
from transformers import PreTrainedTokenizerFast

from tests.families import chats
from tests.families.alphabets import byte_level, starting
from tests.families.writing import CHATML, TEXT, VISION, checkpoint, ids, save

ROWS_AND_COLUMNS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


@checkpoint
def internvl(folder: Path) -> None:
    """InternVL3 in transformers' own layout: 1 to 4 tiles and a small whole picture, shuffled pixels, Qwen2."""
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = byte_level(
        [*CHATML, *names.values()], eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=names
    )
    vision = hf.InternVLVisionConfig(**VISION, image_size=[16, 16], patch_size=[4, 4])
    config = hf.InternVLConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**TEXT, vocab_size=len(tokenizer), tie_word_embeddings=False),
        image_seq_length=4,
        tie_word_embeddings=False,
        **ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
    save(
        folder,
        hf.InternVLForConditionalGeneration,
        config,
        tokenizer,
        chat=chats.INTERNVL,
        ends=["<|im_end|>"],
        pictures=hf.GotOcr2ImageProcessorPil(
            size={"height": 16, "width": 16}, crop_to_patches=False, min_patches=1, max_patches=4
        ),
        processor="InternVLProcessor",
        settings={"image_seq_length": 4},
    )


def _save_idefics(folder: Path, kind: str, tokenizer: PreTrainedTokenizerFast, *, chat: str) -> None:
    """A picture is cut into tiles, each named by row and column, and a small whole; 4 tokens each."""
    vision = getattr(hf, f"{kind}VisionConfig")(**VISION, image_size=16, patch_size=4)
    config = getattr(hf, f"{kind}Config")(
        vision_config=vision,
        text_config=hf.LlamaConfig(
            **TEXT, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False
        ),
        scale_factor=2,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        **ids(tokenizer, image_token_id="<image>"),
    )
    pictures = getattr(hf, f"{kind}ImageProcessorPil")(
        size={"longest_edge": 48}, max_image_size={"longest_edge": 16}, do_image_splitting=True
    )
    save(
        folder,
        getattr(hf, f"{kind}ForConditionalGeneration"),
        config,
        tokenizer,
        chat=chat,
        ends=["<end_of_utterance>"],
        pictures=pictures,
        processor=f"{kind}Processor",
        settings={"image_seq_len": 4},
    )


@checkpoint
def smolvlm(folder: Path) -> None:
    """SmolVLM2 on SmolLM2's tokenizer, whose start token is that of a turn."""
    tags = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *ROWS_AND_COLUMNS]
    tokenizer = byte_level(
        [*CHATML, *tags],
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        extra_special_tokens={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
            "global_image_token": "<global-img>",
        },
    )
    _save_idefics(folder, "SmolVLM", tokenizer, chat=chats.SMOLVLM)


@checkpoint
def idefics3(folder: Path) -> None:
    """Idefics3 on Llama 3's tokenizer, which writes a start token itself."""
    tags = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *ROWS_AND_COLUMNS]
    tokenizer = byte_level(
        ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", *tags],
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|pad|>",
    )
    _save_idefics(folder, "Idefics3", starting(tokenizer, "<|begin_of_text|>"), chat=chats.IDEFICS3)


@checkpoint
def mistral3(folder: Path) -> None:
    """Mistral Small 3.1: the Pixtral tower, merged patches, a token at the end of each line of a picture."""
    specials = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"]
    tokenizer = byte_level(
        [*specials, "[IMG]", "[IMG_BREAK]", "[IMG_END]"],
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**VISION, image_size=48, patch_size=4),
        text_config=hf.MistralConfig(**TEXT, vocab_size=len(tokenizer), head_dim=8, sliding_window=None),
        spatial_merge_size=2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
        **ids(tokenizer, image_token_index="[IMG]"),
    )
    save(
        folder,
        hf.Mistral3ForConditionalGeneration,
        config,
        starting(tokenizer, "<s>"),
        chat=chats.MISTRAL3,
        ends=["</s>"],
        pictures=hf.PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size={"height": 4, "width": 4}),
        processor="PixtralProcessor",
        settings={
            "patch_size": 4,
            "spatial_merge_size": 2,
            "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
        },
    )
