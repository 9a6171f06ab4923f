"""Key-value prefixes against Hugging Face's own cache, filled with the same pairs, and against attention in loops."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from components.adapters.options import parse_layers
from components.adapters.prompts import Pairs, PrefixedAttention
from components.data.batch import Batch, collate
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from tests.unit.llava_checkpoint import write_checkpoint
from tests.unit.sample_rows import row

ROWS = [
    row("Is the sky blue?", "yes", sample_id="short"),
    row("Name the colour of the grass behind the house.", "it is green", sample_id="long"),
    row("What?", "a blue square", sample_id="tiny"),
]
NUM_PAIRS = 3


@pytest.fixture(scope="module")
def llava_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of four query heads on two key heads."""
    return write_checkpoint(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module", params=["pocket", "eager", "sdpa"])
def config(request: pytest.FixtureRequest, llava_dir: Path) -> BackboneConfig:
    if request.param == "pocket":
        return BackboneConfig(name="pocket")
    return BackboneConfig(name=str(llava_dir), attention=request.param)


@pytest.fixture(scope="module")
def backbone(config: BackboneConfig) -> Backbone:
    backbone = load_backbone(config)
    assert backbone.config.attention in ("auto", backbone.language_model.config._attn_implementation)
    return backbone


@pytest.fixture(scope="module")
def encoder(config: BackboneConfig) -> Encoder:
    return build_encoder(config)


@pytest.fixture(scope="module")
def prefixed(backbone: Backbone) -> PrefixedAttention:
    return PrefixedAttention(backbone.language_model, range(depth(backbone)), "projected")


def depth(backbone: Backbone) -> int:
    return backbone.language_model.config.num_hidden_layers


def drawn(prefixed: PrefixedAttention, layers: Sequence[int]) -> dict[int, Tensor]:
    """Another prefix [2, P, W] for every row and layer, about as large as words are."""
    generator = torch.Generator().manual_seed(5)
    return {i: torch.randn(len(ROWS), 2, NUM_PAIRS, prefixed.width, generator=generator) for i in layers}


def pairs_of(prefixed: PrefixedAttention, prefixes: Mapping[int, Tensor]) -> dict[int, Pairs]:
    """The keys and values that a "projected" prefix stands for."""
    units = prefixed.units
    return {i: (prefix[:, 0] * units[i][0], prefix[:, 1] * units[i][1]) for i, prefix in prefixes.items()}


def filled_cache(backbone: Backbone, pairs: Mapping[int, Pairs], index: int) -> DynamicCache:
    """Hugging Face's cache with the pairs of row `index` in every layer."""
    cache, heads = DynamicCache(), backbone.language_model.config.num_key_value_heads
    for layer, (keys, values) in pairs.items():
        parts = [part[index][None].unflatten(2, (heads, -1)).transpose(1, 2) for part in (keys, values)]
        cache.update(parts[0], parts[1], layer)
    return cache


def reference(backbone: Backbone, pairs: Mapping[int, Pairs], index: int, ids: Tensor) -> Tensor:
    """Logits [T, vocabulary] of the Hugging Face model for one row behind its pairs; tokens count from position 0."""
    length = len(ids)
    with torch.no_grad():
        return backbone.model(
            input_ids=ids[None],
            past_key_values=filled_cache(backbone, pairs, index),
            attention_mask=torch.ones(1, NUM_PAIRS + length, dtype=torch.long),
            position_ids=torch.arange(length)[None],
        ).logits[0]


def batch_of(encoder: Encoder, side: str) -> Batch:
    make = encoder.prompt_example if side == "prompts" else encoder.training_example
    side = "left" if side == "prompts" else side
    return collate([make(r) for r in ROWS], pad_id=encoder.pad_id, padding_side=side)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_equal_a_cache_that_holds_the_pairs(
    backbone: Backbone, encoder: Encoder, prefixed: PrefixedAttention, side: str
) -> None:
    prefixes, batch = drawn(prefixed, range(depth(backbone))), batch_of(encoder, side)
    pairs = pairs_of(prefixed, prefixes)
    with torch.no_grad():
        without = backbone(batch).logits
        with prefixed.using(prefixes):
            outputs = backbone(batch)
        assert torch.equal(backbone(batch).logits, without)  # undone
    assert not torch.allclose(outputs.logits, without, atol=1e-2)
    for index, r in enumerate(ROWS):
        example = encoder.training_example(r)
        expected = reference(backbone, pairs, index, example.input_ids)[:-1][example.labels[1:] != -100]
        torch.testing.assert_close(outputs.logits[outputs.rows == index], expected, rtol=1e-4, atol=1e-4)


def test_an_unpadded_row_equals_a_cache_that_holds_the_pairs(
    backbone: Backbone, encoder: Encoder, prefixed: PrefixedAttention
) -> None:
    """Without padding sdpa gets no mask at all."""
    prefixes = drawn(prefixed, range(depth(backbone)))
    example = encoder.training_example(ROWS[0])
    alone = collate([example], pad_id=encoder.pad_id, padding_side="right")
    with torch.no_grad(), prefixed.using({layer: prefix[:1] for layer, prefix in prefixes.items()}):
        logits = backbone(alone).logits
    expected = reference(backbone, pairs_of(prefixed, prefixes), 0, example.input_ids)[:-1][example.labels[1:] != -100]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_hidden_states_pass_the_layers_own_projections(config: BackboneConfig, encoder: Encoder) -> None:
    backbone = load_backbone(config)
    prefixed = PrefixedAttention(backbone.language_model, range(depth(backbone)), "hidden")
    prefixes, weights, pairs = drawn(prefixed, range(depth(backbone))), backbone.state_dict(), {}
    for layer, (keys, values) in pairs_of(prefixed, prefixes).items():
        name = f"model.model.language_model.layers.{layer}.self_attn"
        pairs[layer] = (keys @ weights[f"{name}.k_proj.weight"].T, values @ weights[f"{name}.v_proj.weight"].T)
    batch = batch_of(encoder, "right")
    with torch.no_grad(), prefixed.using(prefixes):
        outputs = backbone(batch)
    for index, r in enumerate(ROWS):
        example = encoder.training_example(r)
        expected = reference(load_backbone(config), pairs, index, example.input_ids)[:-1][example.labels[1:] != -100]
        torch.testing.assert_close(outputs.logits[outputs.rows == index], expected, rtol=1e-4, atol=1e-4)


def test_batched_generation_equals_step_by_step_argmax_of_every_row(
    backbone: Backbone, encoder: Encoder, prefixed: PrefixedAttention
) -> None:
    prefixes, batch = drawn(prefixed, range(depth(backbone))), batch_of(encoder, "prompts")
    pairs = pairs_of(prefixed, prefixes)
    with prefixed.using(prefixes):
        together = backbone.generate(batch, max_new_tokens=6)
    assert together != backbone.generate(batch, max_new_tokens=6)
    end = backbone.model.generation_config.eos_token_id
    for index, r in enumerate(ROWS):
        ids, chosen = encoder.prompt_example(r).input_ids, []
        while len(chosen) < 6:
            token = int(reference(backbone, pairs, index, ids)[-1].argmax())
            if token == end:
                break
            chosen.append(token)
            ids = torch.cat([ids, torch.tensor([token])])
        assert together[index] == chosen


def test_one_layer_alone_is_attention_written_out(backbone: Backbone, prefixed: PrefixedAttention) -> None:
    """Only layer 1 has a prefix: softmax([p_K; K] q) [p_V; V] per head and token, in loops."""
    layer, config = 1, backbone.language_model.config
    prefixes = drawn(prefixed, [layer])
    pairs = pairs_of(prefixed, prefixes)
    size = config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn(1, 4, config.hidden_size, generator=generator)
    with torch.no_grad(), grabbed(backbone, layer) as seen, prefixed.using({layer: prefixes[layer][:1]}):
        backbone.language_model(inputs_embeds=inputs, use_cache=False)
    hidden, cos, sin, output = seen
    weights = {
        name: backbone.state_dict()[f"model.model.language_model.layers.{layer}.self_attn.{name}_proj.weight"]
        for name in "qkvo"
    }
    queries, keys, values = (hidden[0] @ weights[name].T for name in "qkv")

    def rotated(vector: Tensor, token: int) -> Tensor:
        half = size // 2
        turned = torch.cat([-vector[half:], vector[:half]])
        return vector * cos[0, token] + turned * sin[0, token]

    expected = torch.zeros(4, config.num_attention_heads * size)
    for head in range(config.num_attention_heads):
        mine, theirs = slice(head * size, (head + 1) * size), slice(head // group * size, (head // group + 1) * size)
        for token in range(4):
            query = rotated(queries[token, mine], token)
            seen_keys = [pairs[layer][0][0, p, theirs] for p in range(NUM_PAIRS)]
            seen_keys += [rotated(keys[t, theirs], t) for t in range(token + 1)]
            seen_values = [pairs[layer][1][0, p, theirs] for p in range(NUM_PAIRS)]
            seen_values += [values[t, theirs] for t in range(token + 1)]
            powers = [math.exp(float(query @ key) / math.sqrt(size)) for key in seen_keys]
            for power, value in zip(powers, seen_values, strict=True):
                expected[token, mine] += power / sum(powers) * value
    torch.testing.assert_close(output[0], expected @ weights["o"].T, rtol=1e-4, atol=1e-4)


@contextmanager
def grabbed(backbone: Backbone, layer: int) -> Iterator[list[Tensor]]:
    """What the attention of `layer` gets (hidden states, cosines, sines) and gives."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: object, kwargs: dict[str, object], output: tuple[Tensor, ...]) -> None:
        hidden, positions = kwargs["hidden_states"], kwargs["position_embeddings"]
        assert isinstance(hidden, Tensor)
        assert isinstance(positions, tuple)
        seen.extend([hidden, *positions, output[0]])

    attention = backbone.language_model.get_submodule(f"layers.{layer}.self_attn")
    handle = attention.register_forward_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def test_pairs_for_another_number_of_rows_are_noticed(
    backbone: Backbone, encoder: Encoder, prefixed: PrefixedAttention
) -> None:
    few = drawn(prefixed, [0])[0][:1]
    with prefixed.using({0: few}), pytest.raises(AssertionError, match="a prefix for 1 rows"):
        backbone(batch_of(encoder, "right"))


@pytest.mark.parametrize("space", ["projected", "hidden"])
def test_a_word_becomes_what_its_layer_would_make_of_it_in_the_layers_units(config: BackboneConfig, space: str) -> None:
    backbone = load_backbone(config)
    prefixed = PrefixedAttention(backbone.language_model, [1], "hidden" if space == "hidden" else "projected")
    weights, name = backbone.state_dict(), "model.model.language_model.layers.1"
    table = weights["model.model.language_model.embed_tokens.weight"]

    def seen(words: Tensor) -> list[Tensor]:
        scaled = (
            words / (words.square().mean(dim=-1, keepdim=True) + backbone.language_model.config.rms_norm_eps).sqrt()
        )
        inputs = scaled * weights[f"{name}.input_layernorm.weight"]
        if space == "hidden":
            return [inputs, inputs]
        return [inputs @ weights[f"{name}.self_attn.{part}_proj.weight"].T for part in "kv"]

    for unit, values in zip(prefixed.units[1], seen(table), strict=True):  # 512 random words stand for all of them
        assert unit == pytest.approx(float(values.square().mean().sqrt()), rel=0.1)
    words = torch.stack([table[5:8], table[8:11]])
    numbers = prefixed.words(1, words)
    for index in range(2):
        expected = seen(words[index])[index] / prefixed.units[1][index]
        torch.testing.assert_close(numbers[index], expected, rtol=1e-4, atol=1e-5)


def test_layers_are_read_from_first_to_last() -> None:
    assert list(parse_layers("2-4")) == [2, 3, 4]
    assert list(parse_layers("0-0")) == [0]
    for text in ("", "3", "4-2", "a-b", "-1-2", "0,1"):
        with pytest.raises(ValueError, match="FIRST-LAST"):
            parse_layers(text)
