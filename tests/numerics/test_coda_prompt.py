"""CODA-Prompt on pocket against loops and Hugging Face's cache; what old tasks own stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prompt_tasks import SUBJECTS, answers_one_by_one, cosine, learn, prompt_batch, questions, task, training_batch
from torch import Tensor
from transformers import DynamicCache

from components.adapters.prompts import PromptComponents, gram_distance, orthonormal_rows
from components.core.errors import ConfigError
from components.methods.coda_prompt import COMPONENTS, CodaPrompt, CodaPromptConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.training.engine import trainable_parameters

TINY = CodaPromptConfig(sentence_encoder="hash", layers="0-2", components_per_task=4, prompt_length=6)


def attached(config: CodaPromptConfig = TINY) -> tuple[CodaPrompt, Backbone]:
    backbone = load_backbone(BackboneConfig(name="pocket"))
    method = config.build(seed=0)
    method.attach(backbone, None)
    return method, backbone


def learned(config: CodaPromptConfig = TINY, *, tasks: int = 2) -> tuple[CodaPrompt, Backbone]:
    method, backbone = attached(config)
    for index in range(tasks):
        learn(method, backbone, index, updates=8, rate=1e-1)
    return method, backbone


def component(method: CodaPrompt, part: str, layer: int, number: int) -> Tensor:
    """Component `number`, counted over all tasks, of one layer."""
    owner, place = divmod(number, TINY.components_per_task)
    return method.parameters()[f"{COMPONENTS}.{part}_{owner}"].detach()[layer, place]


def weight(method: CodaPrompt, query: Tensor, layer: int, number: int) -> float:
    return cosine(query * component(method, "attention", layer, number), component(method, "keys", layer, number))


def mixed(method: CodaPrompt, query: Tensor, layer: int, *, numbers: range) -> Tensor:
    """sum_m cos(q * A_m, K_m) P_m of one layer [L, W]."""
    total = torch.zeros(TINY.prompt_length, 64)
    for number in numbers:
        total += weight(method, query, layer, number) * component(method, "prompts", layer, number)
    return total


def test_weights_and_prompts_are_the_written_out_sums() -> None:
    method, _ = learned()
    queries = method.encoder.encode(questions())
    weights, prompts, _ = method.components(queries, 2, "mean_square")
    assert weights.shape == (3, 9, 8)
    for layer in range(3):
        for index, query in enumerate(queries):
            expected = [weight(method, query, layer, number) for number in range(8)]
            assert weights[layer, index].tolist() == pytest.approx(expected, abs=1e-5)
            total = mixed(method, query, layer, numbers=range(8))
            torch.testing.assert_close(prompts[layer, index].detach(), total, rtol=1e-4, atol=1e-5)
    assert float(weights.detach().abs().max()) > 0.3  # not all near zero


@pytest.mark.parametrize("space", ["projected", "hidden"])
def test_logits_equal_a_cache_filled_with_the_mixed_pairs(space: str) -> None:
    method, backbone = learned(replace(TINY, prefix_space=space))
    plain, batch = load_backbone(BackboneConfig(name="pocket")), training_batch(questions(), padding_side="left")
    weights = plain.state_dict()
    with torch.no_grad():
        without = backbone(batch).logits
        with method.select(backbone, batch):
            outputs = backbone(batch)
    assert not torch.allclose(outputs.logits, without, atol=0.1)
    for index, query in enumerate(method.encoder.encode(questions())):
        ids = batch.input_ids[index][batch.attention_mask[index].bool()]
        cache = DynamicCache()
        for layer in range(3):
            numbers = mixed(method, query, layer, numbers=range(8))
            units = method.attention.units[layer]
            pair = [numbers[:3] * units[0], numbers[3:] * units[1]]
            if space == "hidden":
                name = f"model.model.language_model.layers.{layer}.self_attn"
                pair = [part @ weights[f"{name}.{kind}_proj.weight"].T for part, kind in zip(pair, "kv", strict=True)]
            keys, values = (part.view(1, 3, 4, 16).transpose(1, 2) for part in pair)  # [1, L / 2, heads, size]
            cache.update(keys, values, layer)
        with torch.no_grad():
            logits = plain.model(
                input_ids=ids[None],
                past_key_values=cache,
                attention_mask=torch.ones(1, 3 + len(ids), dtype=torch.long),
                position_ids=torch.arange(len(ids))[None],
            ).logits[0]
        labels = batch.labels[index][batch.attention_mask[index].bool()]
        expected = logits[:-1][labels[1:] != -100]
        torch.testing.assert_close(outputs.logits[outputs.rows == index], expected, rtol=1e-3, atol=1e-3)


def test_answers_of_a_left_padded_batch_equal_those_one_by_one() -> None:
    method, backbone = learned()
    batch = prompt_batch(questions())
    assert not bool(batch.attention_mask.all())
    with method.select(backbone, batch):
        together = backbone.generate(batch, max_new_tokens=5)
    assert together == answers_one_by_one(method, backbone, questions(), max_new_tokens=5)
    assert together != backbone.generate(batch, max_new_tokens=5)


def test_gram_distance_is_zero_for_orthonormal_rows_and_else_as_by_hand() -> None:
    """Two equal unit rows: X X^T - I = [[0, 1], [1, 0]]. A row (2, 0) beside (0, 1): [[3, 0], [0, 0]]."""
    orthonormal = torch.linalg.qr(torch.randn(2, 7, 7)).Q[:, :4]
    equal, longer = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    assert gram_distance(orthonormal, "paper").item() == pytest.approx(0.0, abs=1e-5)
    assert gram_distance(orthonormal, "first_release").item() == pytest.approx(0.0, abs=1e-16)
    assert gram_distance(equal, "paper").item() == pytest.approx(2**0.5)
    assert gram_distance(equal, "first_release").item() == pytest.approx(0.5e-6)
    assert gram_distance(longer, "paper").item() == pytest.approx(3.0)
    assert gram_distance(longer, "first_release").item() == pytest.approx(9 / 4 * 1e-6)
    assert gram_distance(longer, "mean_square").item() == pytest.approx(9 / 4)
    both = torch.cat([equal, longer])  # layers add up
    assert gram_distance(both, "paper").item() == pytest.approx(3.0 + 2**0.5)
    flat = orthonormal.clone().requires_grad_(True)
    gram_distance(flat, "paper").backward()
    assert flat.grad is not None
    assert bool(torch.isfinite(flat.grad).all())  # the norm's kink at zero


def test_the_penalty_is_the_sum_over_layers_and_parts() -> None:
    for penalty in ("paper", "mean_square", "first_release"):
        method, backbone = learned(replace(TINY, penalty=penalty, orthogonality=0.3), tasks=1)
        method.begin_task(backbone, task(1))
        batch = training_batch(SUBJECTS["forms"])
        with method.select(backbone, batch) as selection:
            outputs = backbone(batch)
            loss = method.loss(backbone, batch, outputs, selection)
        total = 0.0
        for part in ("keys", "attention", "prompts"):
            for layer in range(3):
                squares = 0.0
                for one in range(8):
                    for other in range(8):
                        pair = (component(method, part, layer, one), component(method, part, layer, other))
                        squares += (float((pair[0] * pair[1]).sum()) - (one == other)) ** 2
                total += (
                    squares**0.5 if penalty == "paper" else squares / 64 * (1e-6 if penalty == "first_release" else 1.0)
                )
        assert total > 0
        assert loss.parts["gram_distance"].item() == pytest.approx(total, rel=1e-3)
        assert loss.total.item() == pytest.approx(outputs.loss.item() + 0.3 * total, rel=1e-5)


def test_new_components_start_orthonormal_and_orthogonal_to_the_trained_ones() -> None:
    method, backbone = learned(tasks=1)
    method.begin_task(backbone, task(1))
    for part in ("keys", "attention", "prompts"):
        for layer in range(3):
            old = torch.stack([component(method, part, layer, number).flatten() for number in range(4)])
            new = torch.stack([component(method, part, layer, number).flatten() for number in range(4, 8)])
            torch.testing.assert_close(new @ new.T, torch.eye(4), rtol=0, atol=1e-5)
            torch.testing.assert_close(new @ old.T, torch.zeros(4, 4), rtol=0, atol=1e-4)
            assert not torch.allclose(old @ old.T, torch.eye(4), atol=1e-2)  # training moved them


def test_without_room_new_components_are_orthonormal_among_themselves() -> None:
    old = orthonormal_rows(4, torch.empty(0, 6), torch.Generator().manual_seed(0))
    fits = orthonormal_rows(2, old, torch.Generator().manual_seed(1))
    torch.testing.assert_close(fits @ old.T, torch.zeros(2, 4), rtol=0, atol=1e-6)
    more = orthonormal_rows(3, old, torch.Generator().manual_seed(1))
    torch.testing.assert_close(more @ more.T, torch.eye(3), rtol=0, atol=1e-6)
    assert float((more @ old.T).abs().max()) > 0.1


def test_earlier_components_keep_their_bits_and_their_share_of_every_prefix() -> None:
    method, backbone = learned(tasks=1)
    queries = method.encoder.encode(SUBJECTS["charts"])
    before = {name: value.detach().clone() for name, value in method.parameters().items()}
    _, alone, _ = method.components(queries, 1, "released")
    method.begin_task(backbone, task(1))
    assert set(trainable_parameters(backbone)) == {f"{COMPONENTS}.{part}_1" for part in PromptComponents.PARTS}
    method, backbone = learned(tasks=3)
    for name, value in before.items():
        assert torch.equal(method.parameters()[name], value)
    weights, together, _ = method.components(queries, 3, "released")
    for layer in range(3):
        for index, query in enumerate(queries):
            joined = mixed(method, query, layer, numbers=range(4, 12))
            expected = alone[layer, index] + joined
            torch.testing.assert_close(together[layer, index].detach(), expected.detach(), rtol=1e-4, atol=1e-5)
    assert float(weights.detach()[:, :, 4:].abs().max()) > 0.05  # so old answers do change: no promise of none


def test_the_loss_reaches_all_parts_of_the_new_components_and_no_earlier_one() -> None:
    method, backbone = learned(tasks=1)
    method.begin_task(backbone, task(1))
    batch = training_batch(SUBJECTS["forms"])
    with method.select(backbone, batch) as selection:
        method.loss(backbone, batch, backbone(batch), selection).total.backward()
    for name, parameter in method.parameters().items():
        if name.endswith("_0"):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None
            assert bool(parameter.grad.any())


def test_the_module_reads_its_own_parameters() -> None:
    """ZeRO-3 gathers what a module owns itself around its forward."""
    components = PromptComponents()
    for index in range(2):
        components.add_task(
            index, keys=torch.randn(1, 2, 3), attention=torch.randn(1, 2, 3), prompts=torch.randn(1, 2, 4, 5)
        )
    names = {f"{part}_{index}" for part in PromptComponents.PARTS for index in range(2)}
    assert {name for name, _ in components.named_parameters(recurse=False)} == names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": "1"}, "layers: '1' is not FIRST-LAST"),
        ({"prompt_length": 5}, "prompt_length is 5"),
        ({"components_per_task": 0}, "components_per_task is 0"),
        ({"orthogonality": -1.0}, r"orthogonality is -1\.0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(TINY, layers="0-4"), "needs 5 layers, the language model has 3"),
        (replace(TINY, components_per_task=300), "give at most 256"),
    ],
)
def test_options_that_do_not_fit_model_or_encoder_are_refused(config: CodaPromptConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attached(config)
