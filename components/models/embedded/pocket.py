"""`pocket`: a LLaVA of a few small layers, built in code without any download, for tests and trials of the machinery.

CLIP tower (64 px, 16 visual tokens) + two-layer projector + three Llama layers of width 64, about 0.25 M parameters,
milliseconds per step. It has never seen text, so adapters can use only what the random frozen layers pass on, and the
weights are drawn with that in mind: two of four heads compare tokens with themselves (keys = queries) and so pass
the current token on; the others average over the sequence and so pass the picture and the question on. Adapters on the
attention output can therefore learn small tasks (short answers from colours and words). It knows no language.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
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

from components.models.source import CPU, ModelSource, ProcessorFiles, torch_dtype

SEED = 20240229
VERSION = 1  # raise when the construction below changes
IMAGE_SIZE, PATCH = 64, 16  # 4 x 4 visual tokens
WIDTH, LAYERS, HEADS = 64, 3, 4
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
# Whole words that get one token (with and without a leading space): prompts get short and steps fast.
WORD_LIST = (
    "a an the of in is are on at to and or not which what how many where when who name value this that these "
    "there with for from picture image chart table bar line page document form field icon icons scan slice choose "
    "answer question using single word phrase number letter option options yes no red green blue yellow orange "
    "purple pink brown black white gray grey cyan highest lowest largest smallest most least more than first "
    "second third left right top bottom shown show describe user assistant one two three four five six seven "
    "eight nine zero cat dog tree house star circle square triangle object "
)


class PocketSource(ModelSource):
    """The model and its processor, built by this module."""

    template = "chatml"

    def fingerprint(self) -> str:
        """Identity of the weights: they are a function of these values."""
        return _fingerprint()

    def model_type(self) -> str:
        return "llava"

    def fetch(self) -> None:
        """There are no files."""

    def tokenizer_files(self) -> list[Path]:
        return []

    def model_config(self) -> LlavaConfig:
        return _config()

    def processor_files(self) -> ProcessorFiles:
        processor = pocket_processor()
        return ProcessorFiles(
            tokenizer=processor.tokenizer, image_processor=processor.image_processor, chat_template=None
        )

    def save_processor(self, folder: Path) -> None:
        pocket_processor().save_pretrained(folder)

    def licence(self) -> str:
        return "apache-2.0"

    def model(self, device: torch.device = CPU, *, decoder: bool = True) -> LlavaForConditionalGeneration:
        model = pocket_model()
        cast(nn.Module, model).to(device, torch_dtype(self.config))  # the library types `to` otherwise
        return model


def pocket_model() -> LlavaForConditionalGeneration:
    """The model with its seeded weights, float32; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = LlavaForConditionalGeneration(_config())
        _initialise(model)
    end = _vocabulary()[0]["<|im_end|>"]
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    return model.eval()


def pocket_processor() -> LlavaProcessor:
    """Tokenizer and image processor in the same classes that LLaVA-1.5 uses."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@cache
def _fingerprint() -> str:
    recipe = {"config": _config().to_dict(), "seed": SEED, "version": VERSION}
    recipe["config"].pop("transformers_version", None)
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level vocabulary and merges: all bytes, then each listed word merged from left to right."""
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known, merges = set(tokens), []
    for word in WORD_LIST.split():
        for form in (word, "Ġ" + word, "Ġ" + word.capitalize(), word.capitalize()):
            for end in range(1, len(form)):
                merged = form[: end + 1]
                if merged not in known:
                    known.add(merged)
                    tokens.append(merged)
                    merges.append((form[:end], form[end]))
    return {token: index for index, token in enumerate(tokens)}, merges


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary, merges = _vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    digits = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",  # equal to eos on purpose: the tests then see any masking by id
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    )


def _config() -> LlavaConfig:
    vocabulary, _ = _vocabulary()
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=2048,
        bos_token_id=vocabulary["<|im_start|>"],
        eos_token_id=vocabulary["<|im_end|>"],
        pad_token_id=vocabulary["<|im_end|>"],
        tie_word_embeddings=False,
    )
    vision = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=48,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=vocabulary["<image>"],
        image_seq_length=(IMAGE_SIZE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _initialise(model: LlavaForConditionalGeneration) -> None:
    """Random weights at which signals keep their size and half of the heads attend to the current token."""
    language = model.model.language_model
    nn.init.normal_(language.embed_tokens.weight, std=0.5)
    nn.init.normal_(model.lm_head.weight, std=0.15)  # logits near 1: the loss starts near log(vocabulary)
    for layer in language.layers:
        attention = layer.self_attn
        nn.init.normal_(attention.q_proj.weight, std=0.2)
        nn.init.normal_(attention.k_proj.weight, std=0.05)
        with torch.no_grad():
            attention.k_proj.weight[: WIDTH // 2] = attention.q_proj.weight[: WIDTH // 2]
        for linear in (attention.v_proj, attention.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        attention.o_proj.weight.data.mul_(0.5)
        layer.mlp.down_proj.weight.data.mul_(0.5)
    for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)
    nn.init.normal_(model.model.vision_tower.embeddings.patch_embedding.weight, std=0.05)
