"""Loading backbones, what they adapt, and what they refuse."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from components.core.errors import ConfigError
from components.data.batch import IGNORE, Batch, collate
from components.data.rows import Row
from components.methods.base import TARGETS
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from tests.pictures import features_of, pixels_of, with_features
from tests.unit.llava_checkpoint import write_checkpoint
from tests.unit.sample_rows import picture, row

ROWS = [
    row("<image>\nWhat colour is this?", "red", image=picture((250, 0, 0)), sample_id="red"),
    row("Is the sky blue?", "yes", "And the grass?", "it is green", sample_id="words"),
    row("<image>\nName it.", "a blue square", image=picture((0, 0, 250), size=(30, 10)), sample_id="blue"),
]


@pytest.fixture(scope="module")
def llava_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module", params=["pocket", "llava"])
def config(request: pytest.FixtureRequest, llava_dir: Path) -> BackboneConfig:
    return BackboneConfig(name="pocket" if request.param == "pocket" else str(llava_dir))


@pytest.fixture(scope="module")
def backbone(config: BackboneConfig) -> Backbone:
    return load_backbone(config)


@pytest.fixture(scope="module")
def encoder(config: BackboneConfig) -> Encoder:
    return build_encoder(config)


def training_batch(encoder: Encoder) -> Batch:
    return collate([encoder.training_example(r) for r in ROWS], pad_id=encoder.pad_id, padding_side="right")


def prompt_batch(encoder: Encoder) -> Batch:
    return collate([encoder.prompt_example(r) for r in ROWS], pad_id=encoder.pad_id, padding_side="left")


def reference_logits(backbone: Backbone, batch: Batch) -> Tensor:
    """The Hugging Face model's own forward, all positions."""
    with torch.no_grad():
        return backbone.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=pixels_of(batch)
        ).logits


def test_nothing_is_trainable_and_mode_is_evaluation(backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_forward_equals_the_hugging_face_model(backbone: Backbone, encoder: Encoder) -> None:
    batch = training_batch(encoder)
    outputs = backbone(batch)
    supervised = batch.labels[:, 1:] != IGNORE
    expected = reference_logits(backbone, batch)[:, :-1][supervised]
    torch.testing.assert_close(outputs.logits, expected, rtol=1e-4, atol=1e-4)
    assert outputs.num_targets == int(supervised.sum())
    assert outputs.rows.bincount().tolist() == supervised.sum(dim=1).tolist()
    loss = nn.functional.cross_entropy(expected, batch.labels[:, 1:][supervised])
    torch.testing.assert_close(outputs.loss, loss, rtol=1e-4, atol=1e-4)


def test_cached_features_give_the_same_logits_as_pixels(backbone: Backbone, encoder: Encoder) -> None:
    batch = training_batch(encoder)
    features = features_of(backbone, batch)
    assert features.shape[:2] == (2, sum(encoder.family.layout(32, 32).runs))
    cached = backbone(with_features(batch, features))
    assert torch.equal(cached.logits, backbone(batch).logits)


def test_features_are_what_the_model_itself_projects(backbone: Backbone, encoder: Encoder) -> None:
    batch = training_batch(encoder)
    with torch.no_grad():
        expected = torch.stack(tuple(backbone.model.get_image_features(pixel_values=pixels_of(batch)).pooler_output))
        ours = backbone.projector(features_of(backbone, batch))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_padding_does_not_change_logits(backbone: Backbone, encoder: Encoder) -> None:
    examples = [encoder.training_example(r) for r in ROWS]
    for side in ("left", "right"):
        together = backbone(collate(examples, pad_id=encoder.pad_id, padding_side=side))
        alone = [backbone(collate([e], pad_id=encoder.pad_id, padding_side=side)).logits for e in examples]
        torch.testing.assert_close(together.logits, torch.cat(alone), rtol=1e-4, atol=1e-4)


def greedy_without_cache(backbone: Backbone, batch: Batch, *, steps: int) -> list[int]:
    """One row, one full forward of the Hugging Face model per token."""
    chosen: list[int] = []
    end = backbone.model.generation_config.eos_token_id
    ids = batch.input_ids
    for _ in range(steps):
        grown = replace(batch, input_ids=ids, attention_mask=torch.ones_like(ids))
        token = int(reference_logits(backbone, grown)[0, -1].argmax())
        if token == end:
            break
        chosen.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return chosen


def test_generation_equals_step_by_step_argmax(backbone: Backbone, encoder: Encoder) -> None:
    for r in ROWS:
        batch = collate([encoder.prompt_example(r)], pad_id=encoder.pad_id, padding_side="left")
        assert backbone.generate(batch, max_new_tokens=6) == [greedy_without_cache(backbone, batch, steps=6)]


def test_batched_generation_equals_one_by_one(backbone: Backbone, encoder: Encoder) -> None:
    alone = [
        backbone.generate(
            collate([encoder.prompt_example(r)], pad_id=encoder.pad_id, padding_side="left"), max_new_tokens=6
        )[0]
        for r in ROWS
    ]
    assert backbone.generate(prompt_batch(encoder), max_new_tokens=6) == alone


def test_generation_stops_at_the_end_token(encoder: Encoder, config: BackboneConfig) -> None:
    backbone = load_backbone(config)
    batch = prompt_batch(encoder)
    first = backbone.generate(batch, max_new_tokens=3)[0]
    backbone.model.generation_config.eos_token_id = first[0]
    assert backbone.generate(batch, max_new_tokens=3)[0] == []


def embedded(backbone: Backbone, ids: Tensor) -> Tensor:
    table = backbone.language_model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    return table(ids).detach()


def reference_embeddings(backbone: Backbone, encoder: Encoder, r: Row, *, prompt: bool) -> tuple[Tensor, Tensor]:
    """One row's embeddings [1, T, D] and labels [1, T], put together from the Hugging Face model's parts."""
    example = encoder.prompt_example(r) if prompt else encoder.training_example(r)
    embeddings = embedded(backbone, example.input_ids)
    for shown in example.pictures:
        features = backbone.model.get_image_features(**shown.tensors).pooler_output[0]
        embeddings[example.input_ids == backbone.family.image_token_id] = features
    return embeddings[None], example.labels[None]


def prefixes(backbone: Backbone, *, rows: int, length: int = 4) -> Tensor:
    """Another prefix [P, D] for each row, about as large as the model's token embeddings."""
    draw = torch.randn(rows, length, backbone.hidden_size, generator=torch.Generator().manual_seed(3))
    return draw * embedded(backbone, torch.arange(100)).std()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prefix_is_what_concatenated_embeddings_are(backbone: Backbone, encoder: Encoder, side: str) -> None:
    batch = collate([encoder.training_example(r) for r in ROWS], pad_id=encoder.pad_id, padding_side=side)
    prefix = prefixes(backbone, rows=len(ROWS))
    with torch.no_grad():
        without = backbone(batch).logits
        with backbone.prefixed(prefix):
            outputs = backbone(batch)
        after = backbone(batch).logits
        for index, r in enumerate(ROWS):
            embeddings, labels = reference_embeddings(backbone, encoder, r, prompt=False)
            plain = backbone.model(inputs_embeds=torch.cat([prefix[index][None], embeddings], dim=1)).logits
            expected = plain[:, prefix.shape[1] : -1][labels[:, 1:] != IGNORE]
            torch.testing.assert_close(outputs.logits[outputs.rows == index], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(after, without)
    assert not torch.allclose(outputs.logits, without, atol=1e-2)  # the prefixes are large enough to matter


def test_prefixed_generation_equals_step_by_step_argmax_of_every_row(backbone: Backbone, encoder: Encoder) -> None:
    prefix, end = prefixes(backbone, rows=len(ROWS)), backbone.model.generation_config.eos_token_id
    with backbone.prefixed(prefix):
        together = backbone.generate(prompt_batch(encoder), max_new_tokens=6)
    for index, r in enumerate(ROWS):
        embeddings, _ = reference_embeddings(backbone, encoder, r, prompt=True)
        embeddings = torch.cat([prefix[index][None], embeddings], dim=1)
        chosen: list[int] = []
        with torch.no_grad():
            while len(chosen) < 6:
                token = backbone.model(inputs_embeds=embeddings).logits[0, -1].argmax()
                if int(token) == end:
                    break
                chosen.append(int(token))
                embeddings = torch.cat([embeddings, embedded(backbone, token[None])[None]], dim=1)
        assert together[index] == chosen
    assert together != backbone.generate(prompt_batch(encoder), max_new_tokens=6)


def test_a_prefix_for_another_number_of_rows_is_noticed(backbone: Backbone, encoder: Encoder) -> None:
    with backbone.prefixed(prefixes(backbone, rows=2)), pytest.raises(AssertionError, match="a prefix for 2 rows"):
        backbone(training_batch(encoder))


def test_generation_refuses_right_padding(backbone: Backbone, encoder: Encoder) -> None:
    batch = collate([encoder.prompt_example(r) for r in ROWS], pad_id=encoder.pad_id, padding_side="right")
    with pytest.raises(AssertionError, match="left-padded"):
        backbone.generate(batch, max_new_tokens=1)


def test_text_only_batch(backbone: Backbone, encoder: Encoder) -> None:
    batch = collate([encoder.training_example(ROWS[1])], pad_id=encoder.pad_id, padding_side="right")
    assert batch.pictures == [()]
    assert torch.isfinite(backbone(batch).loss)


def test_a_processor_of_another_model_is_noticed(backbone: Backbone, encoder: Encoder) -> None:
    batch = training_batch(encoder)
    wrong = [tuple(replace(shown, num_tokens=3) for shown in row) for row in batch.pictures]
    with pytest.raises(ConfigError, match="take 3, 3 tokens in their rows, but the model gives"):
        backbone(replace(batch, pictures=wrong))


def test_targets_are_in_the_language_model_only(backbone: Backbone) -> None:
    layers = backbone.model.config.text_config.num_hidden_layers
    output = backbone.target_modules(TARGETS["o_proj"])
    assert len(output) == layers
    assert len(backbone.target_modules(TARGETS["all_linear"])) == 7 * layers
    # The CLIP tower has a q_proj in each of its layers too.
    query = backbone.target_modules(r"self_attn\.q_proj")
    assert len(query) == layers
    assert sum(name.endswith("self_attn.q_proj") for name, _ in backbone.named_modules()) > layers
    for name, module in query.items():
        assert "language_model" in name
        assert backbone.get_submodule(name) is module


@pytest.mark.parametrize("pattern", ["q_proj", r"self_attn\.out_proj", "lm_head", "(", ""])
def test_a_pattern_that_fits_nothing_is_refused(backbone: Backbone, pattern: str) -> None:
    with pytest.raises(ConfigError, match="pattern"):
        backbone.target_modules(pattern)


class Shifted(nn.Module):
    """A trainable stand-in for an adapter: adds a low-rank product to a frozen linear layer."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features) * base.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def add_adapters(backbone: Backbone, *, rank: int = 4) -> list[nn.Parameter]:
    torch.manual_seed(0)
    adapters = {name: Shifted(linear, rank) for name, linear in backbone.target_modules(TARGETS["o_proj"]).items()}
    for name, adapter in adapters.items():
        backbone.set_submodule(name, adapter)
    return [p for adapter in adapters.values() for p in (adapter.down, adapter.up)]


def test_gradient_checkpointing_gives_the_same_gradients(config: BackboneConfig, encoder: Encoder) -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = load_backbone(replace(config, gradient_checkpointing=checkpointing))
        parameters = add_adapters(backbone)
        backbone.train()
        backbone(training_batch(encoder)).loss.backward()
        gradients.append([p.grad for p in parameters])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, recomputed)
    assert any(float(g.abs().max()) > 0 for g in gradients[0] if g is not None)


def test_train_mode_leaves_the_tower_alone(config: BackboneConfig) -> None:
    backbone = load_backbone(config)
    backbone.train()
    assert backbone.language_model.training
    assert not any(module.training for module in backbone.model.model.vision_tower.modules())


def test_bfloat16_weights_take_float32_features(config: BackboneConfig, encoder: Encoder) -> None:
    backbone = load_backbone(replace(config, dtype="bfloat16"))
    outputs = backbone(training_batch(encoder))
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.loss.dtype == torch.float32
    assert backbone.fingerprint == load_backbone(config).fingerprint


def test_fingerprint_follows_the_weights(llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path / "cache"))
    same = load_backbone(BackboneConfig(name=str(llava_dir))).fingerprint
    assert load_backbone(BackboneConfig(name=str(llava_dir))).fingerprint == same
    copied = write_checkpoint(tmp_path / "same", seed=0)
    assert load_backbone(BackboneConfig(name=str(copied))).fingerprint == same
    other = write_checkpoint(tmp_path / "other", seed=1)
    assert load_backbone(BackboneConfig(name=str(other))).fingerprint != same


def test_pocket_is_the_same_every_time_and_leaves_the_random_state() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second = load_backbone(BackboneConfig(name="pocket")), load_backbone(BackboneConfig(name="pocket"))
    assert torch.equal(torch.rand(1), expected)
    for (name, one), (_, two) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(one, two), name
    copied = copy.deepcopy(first)
    assert copied.fingerprint == first.fingerprint


def test_pocket_learns_colours_with_adapters_on_the_attention_output() -> None:
    config = BackboneConfig(name="pocket")
    backbone, encoder = load_backbone(config), build_encoder(config)
    colours = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "yellow": (230, 220, 20)}
    rows = [
        row("<image>\nWhat colour is this?", name, image=picture(tuple(min(255, c + shade) for c in rgb)))
        for name, rgb in colours.items()
        for shade in (0, 12, 24)
    ]
    batch = collate([encoder.training_example(r) for r in rows], pad_id=encoder.pad_id, padding_side="right")
    batch = with_features(batch, features_of(backbone, batch))
    parameters = add_adapters(backbone, rank=8)
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0)
    for _ in range(60):
        loss = backbone(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prompts = collate([encoder.prompt_example(r) for r in rows], pad_id=encoder.pad_id, padding_side="left")
    answers = [encoder.decode(ids) for ids in backbone.generate(prompts, max_new_tokens=4)]
    correct = sum(answer == r.answers[0] for answer, r in zip(answers, rows, strict=True))
    assert correct >= 10, (answers, float(loss))  # of 12; always one colour would get 3


def test_an_unknown_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a directory"):
        load_backbone(BackboneConfig(name=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_backbone(BackboneConfig(name=str(tmp_path / "empty")))
    with pytest.raises(ConfigError, match=r"backbone\.name"):
        BackboneConfig(name="")
