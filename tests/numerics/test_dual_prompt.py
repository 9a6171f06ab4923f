"""DualPrompt on pocket against written-out choices and Hugging Face's cache; what old tasks own stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prompt_tasks import SUBJECTS, answers_one_by_one, cosine, learn, prompt_batch, questions, task, training_batch
from transformers import DynamicCache

from components.adapters.prompts import GeneralAndExpertPrefixes
from components.core.errors import ConfigError
from components.methods.dual_prompt import PREFIXES, DualPrompt, DualPromptConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.training.engine import trainable_parameters

TINY = DualPromptConfig(
    sentence_encoder="hash", general_layers="0-0", expert_layers="1-2", general_length=4, expert_length=4
)


def attached(config: DualPromptConfig = TINY) -> tuple[DualPrompt, Backbone]:
    backbone = load_backbone(BackboneConfig(name="pocket"))
    method = config.build(seed=0)
    method.attach(backbone, None)
    return method, backbone


def learned(config: DualPromptConfig = TINY, *, tasks: int = 3, updates: int = 12) -> tuple[DualPrompt, Backbone]:
    """Large steps, so that experts and keys differ clearly."""
    method, backbone = attached(config)
    for index in range(tasks):
        learn(method, backbone, index, updates=updates, rate=3e-2)
    return method, backbone


def nearest(method: DualPrompt, question: str) -> int:
    query = method.encoder.encode([question])[0]
    keys = [method.prefixes.get_parameter(f"key_{index}") for index in range(len(method.tasks))]
    return max(range(len(keys)), key=lambda index: cosine(query, keys[index]))


@pytest.mark.parametrize("space", ["projected", "hidden"])
def test_logits_equal_a_cache_filled_with_the_general_and_the_nearest_experts_pairs(space: str) -> None:
    method, backbone = learned(replace(TINY, prefix_space=space))
    plain, parameters = load_backbone(BackboneConfig(name="pocket")), method.parameters()
    weights = plain.state_dict()
    for side in ("right", "left"):
        batch = training_batch(questions(), padding_side=side)
        with torch.no_grad(), method.select(backbone, batch):
            outputs = backbone(batch)
        for index, question in enumerate(questions()):
            ids = batch.input_ids[index][batch.attention_mask[index].bool()]
            cache = DynamicCache()
            for layer in range(3):
                owner = "general" if layer == 0 else f"expert_{nearest(method, question)}"
                numbers = parameters[f"{PREFIXES}.{owner}"].detach()[max(layer - 1, 0)]
                pair = [part * unit for part, unit in zip(numbers, method.attention.units[layer], strict=True)]
                if space == "hidden":
                    name = f"model.model.language_model.layers.{layer}.self_attn"
                    pair = [
                        part @ weights[f"{name}.{kind}_proj.weight"].T for part, kind in zip(pair, "kv", strict=True)
                    ]
                keys, values = (part.view(1, 4, 4, 16).transpose(1, 2) for part in pair)  # [1, L, heads, size]
                cache.update(keys, values, layer)
            with torch.no_grad():
                logits = plain.model(
                    input_ids=ids[None],
                    past_key_values=cache,
                    attention_mask=torch.ones(1, 4 + len(ids), dtype=torch.long),
                    position_ids=torch.arange(len(ids))[None],
                ).logits[0]
            labels = batch.labels[index][batch.attention_mask[index].bool()]
            expected = logits[:-1][labels[1:] != -100]
            torch.testing.assert_close(outputs.logits[outputs.rows == index], expected, rtol=1e-4, atol=1e-4)


def test_at_test_the_nearest_key_decides_and_an_oracle_overrules_it() -> None:
    method, backbone = learned()
    batch = prompt_batch(questions())
    expected = [method.tasks[nearest(method, question)] for question in questions()]
    with method.select(backbone, batch) as selection:
        assert selection.routed_to == expected
        assert selection.slots is not None
        assert selection.slots.tolist() == [[method.tasks.index(name)] for name in expected]
    asked = [name for name, subject in SUBJECTS.items() for _ in subject]
    hits = sum(name == wanted for name, wanted in zip(expected, asked, strict=True))
    assert hits >= 8  # of 9: the keys have learned their instructions ("how many" is asked in two tasks)
    for name in method.tasks:
        with method.select(backbone, replace(batch, oracle_task=name)) as selection:
            assert selection.routed_to == [name] * len(batch)
    with method.select(backbone, replace(batch, oracle_task="not learned yet")) as selection:
        assert selection.routed_to == expected


def test_in_training_the_current_task_serves_every_sample() -> None:
    method, backbone = learned(tasks=1)
    method.begin_task(backbone, task(1))
    with method.select(backbone, replace(training_batch(questions()), oracle_task="charts")) as selection:
        assert selection.routed_to == ["forms"] * 9


def test_answers_to_different_tasks_in_one_left_padded_batch_equal_those_one_by_one() -> None:
    method, backbone = learned()
    batch = prompt_batch(questions())
    assert not bool(batch.attention_mask.all())
    with method.select(backbone, batch) as selection:
        together = backbone.generate(batch, max_new_tokens=5)
    assert selection.routed_to is not None
    assert len(set(selection.routed_to)) == 3
    assert together == answers_one_by_one(method, backbone, questions(), max_new_tokens=5)


def test_the_pull_is_the_current_keys_cosine_distance() -> None:
    method, backbone = learned(replace(TINY, pull=0.3), tasks=1)
    method.begin_task(backbone, task(1))
    batch = training_batch(SUBJECTS["forms"])
    with method.select(backbone, batch) as selection:
        outputs = backbone(batch)
        loss = method.loss(backbone, batch, outputs, selection)
    key = method.prefixes.get_parameter("key_1")
    distances = [1.0 - cosine(query, key) for query in method.encoder.encode(SUBJECTS["forms"])]
    tokens = [int((labels[1:] != -100).sum()) for labels in batch.labels]
    mean = sum(value * count for value, count in zip(distances, tokens, strict=True)) / sum(tokens)
    assert loss.parts["key_distance"].item() == pytest.approx(mean, abs=1e-5)
    assert loss.total.item() == pytest.approx(outputs.loss.item() + 0.3 * mean, abs=1e-5)


def test_what_earlier_tasks_own_keeps_its_bits_and_the_general_prefix_goes_on() -> None:
    method, backbone = learned(tasks=1)
    before = {name: value.detach().clone() for name, value in method.parameters().items()}
    method.begin_task(backbone, task(1))
    trained = {f"{PREFIXES}.{name}" for name in ("general", "key_1", "expert_1")}
    assert set(trainable_parameters(backbone)) == trained
    method, backbone = learned(tasks=3)
    after = method.parameters()
    for name, value in before.items():
        assert torch.equal(after[name], value) == (name != f"{PREFIXES}.general")


def test_a_later_task_changes_an_earlier_ones_answers_through_the_general_prefix_only() -> None:
    """With the first task's general prefix put back and the task known, its logits come back to the bit."""
    method, backbone = learned(tasks=1)
    batch = replace(training_batch(SUBJECTS["charts"]), oracle_task="charts")
    general = method.prefixes.general.detach().clone()
    with torch.no_grad(), method.select(backbone, batch):
        expected = backbone(batch).logits
    for index in (1, 2):
        learn(method, backbone, index, updates=12, rate=3e-2)
    with torch.no_grad(), method.select(backbone, batch):
        assert not torch.equal(backbone(batch).logits, expected)
    with torch.no_grad():
        method.prefixes.general.copy_(general)
    with torch.no_grad(), method.select(backbone, batch):
        assert torch.equal(backbone(batch).logits, expected)


@pytest.mark.parametrize("start", ["previous", "fresh"])
def test_an_expert_starts_from_the_last_one_or_anew(start: str) -> None:
    method, backbone = learned(replace(TINY, expert_start=start), tasks=1)
    method.begin_task(backbone, task(1))
    first, second = (method.prefixes.get_parameter(f"expert_{index}") for index in range(2))
    assert torch.equal(first, second) == (start == "previous")


def test_the_released_start_is_small_and_positive() -> None:
    method, _ = attached(replace(TINY, prefix_start="uniform"))
    general = method.prefixes.general.detach()
    assert float(general.min()) >= 0.0
    assert 0.0095 < float(general.max()) < 0.01


def test_the_module_reads_its_own_parameters() -> None:
    """ZeRO-3 gathers what a module owns itself around its forward."""
    prefixes = GeneralAndExpertPrefixes(torch.randn(1, 2, 3, 4))
    prefixes.add_task(0, key=torch.randn(5), expert=torch.randn(2, 2, 6, 4))
    assert {name for name, _ in prefixes.named_parameters(recurse=False)} == {"general", "key_0", "expert_0"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general_layers": "1"}, "general_layers: '1' is not FIRST-LAST"),
        ({"expert_layers": "0-2"}, "overlap"),
        ({"expert_length": 0}, "expert_length is 0"),
        ({"pull": -1.0}, r"pull is -1\.0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


def test_layers_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="need 5 layers, the language model has 3"):
        attached(DualPromptConfig(sentence_encoder="hash"))
