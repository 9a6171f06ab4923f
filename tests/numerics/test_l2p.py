"""L2P on pocket against written-out formulas and the plain Hugging Face model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prompt_tasks import SUBJECTS, answers_one_by_one, cosine, learn, prompt_batch, questions, task, training_batch
from torch.nn import functional as F

from components.adapters.prompts import PromptPool
from components.core.errors import ConfigError
from components.methods.l2p import COUNTS, L2P, L2PConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.training.engine import TorchEngine
from components.training.optimizer import OptimizerConfig

WORDS = "model.model.language_model.embed_tokens.weight"
TINY = L2PConfig(sentence_encoder="hash", pool_size=6, prompt_length=3, top_k=2)


def attached(config: L2PConfig = TINY) -> tuple[L2P, Backbone]:
    backbone = load_backbone(BackboneConfig(name="pocket"))
    method = config.build(seed=0)
    method.attach(backbone, None)
    return method, backbone


def with_spread_keys(method: L2P) -> L2P:
    """Keys near the questions of different subjects, so that samples choose different prompts."""
    queries = method.encoder.encode(questions())
    with torch.no_grad():
        method.pool.keys.copy_(queries[[0, 1, 3, 5, 6, 8]] + 0.05 * torch.randn(6, queries.shape[1]))
    return method


def nearest(method: L2P, question: str) -> list[int]:
    """The ids of the K keys with the largest cosine, ascending."""
    query = method.encoder.encode([question])[0]
    ranked = sorted(range(TINY.pool_size), key=lambda index: -cosine(query, method.pool.keys[index]))
    return sorted(ranked[: TINY.top_k])


def test_every_sample_gets_the_prompts_with_the_nearest_keys() -> None:
    torch.manual_seed(0)
    method, backbone = attached()
    with_spread_keys(method).begin_task(backbone, task(0))
    expected = [nearest(method, question) for question in questions()]
    with method.select(backbone, training_batch(questions())) as selection:
        assert selection.slots is not None
        assert selection.slots.tolist() == expected
    assert selection.routed_to is None
    assert len({tuple(ids) for ids in expected}) > 3  # the samples do differ


def test_the_pull_is_the_sum_of_the_chosen_keys_cosine_distances() -> None:
    torch.manual_seed(0)
    method, backbone = attached(replace(TINY, pull=0.7))
    with_spread_keys(method).begin_task(backbone, task(0))
    batch = training_batch(questions())
    with method.select(backbone, batch) as selection:
        outputs = backbone(batch)
        loss = method.loss(backbone, batch, outputs, selection)
    queries = method.encoder.encode(questions())
    sums = [
        sum(1.0 - cosine(query, method.pool.keys[index]) for index in nearest(method, question))
        for question, query in zip(questions(), queries, strict=True)
    ]
    tokens = [int((labels[1:] != -100).sum()) for labels in batch.labels]
    mean = sum(value * count for value, count in zip(sums, tokens, strict=True)) / sum(tokens)
    assert loss.parts["key_distance"].item() == pytest.approx(mean, abs=1e-5)
    assert loss.total.item() == pytest.approx(outputs.loss.item() + 0.7 * mean, abs=1e-5)


def test_keys_and_prompts_that_no_sample_chose_get_no_gradient() -> None:
    torch.manual_seed(0)
    method, backbone = attached()
    with_spread_keys(method).begin_task(backbone, task(0))
    batch = training_batch(SUBJECTS["charts"])
    with method.select(backbone, batch) as selection:
        method.loss(backbone, batch, backbone(batch), selection).total.backward()
    assert selection.slots is not None
    chosen = set(selection.slots.flatten().tolist())
    assert 0 < len(chosen) < TINY.pool_size
    for gradient in (method.pool.keys.grad, method.pool.prompts.grad):
        assert gradient is not None
        assert {index for index in range(TINY.pool_size) if gradient[index].any()} == chosen


def test_the_keys_gradient_is_the_pull_alone() -> None:
    """d(1 - cos)/dk = -(q/|q| - cos k/|k|) / |k|: the language-model loss does not reach the keys."""
    torch.manual_seed(0)
    method, backbone = attached()
    with_spread_keys(method).begin_task(backbone, task(0))
    batch = training_batch(["Which bar is the highest?"])
    with method.select(backbone, batch) as selection:
        method.loss(backbone, batch, backbone(batch), selection).total.backward()
    query = method.encoder.encode(batch.instructions)[0]
    assert selection.slots is not None
    assert method.pool.keys.grad is not None
    for index in selection.slots[0].tolist():
        key = method.pool.keys[index].detach()
        expected = -0.5 * (query / query.norm() - cosine(query, key) * key / key.norm()) / key.norm()
        torch.testing.assert_close(method.pool.keys.grad[index], expected, rtol=1e-4, atol=1e-6)


def test_logits_equal_the_hugging_face_model_on_prompts_and_text_concatenated() -> None:
    torch.manual_seed(0)
    method, backbone = attached()
    with_spread_keys(method)
    learn(method, backbone, 0)
    plain = load_backbone(BackboneConfig(name="pocket"))
    for side in ("right", "left"):
        batch = training_batch(questions(), padding_side=side)
        with torch.no_grad(), method.select(backbone, batch):
            outputs = backbone(batch)
        for index, question in enumerate(questions()):
            alone = training_batch([question])
            prompts = (
                torch.cat([method.pool.prompts[chosen] for chosen in nearest(method, question)]) * method.pool.unit
            )
            embedded = torch.cat([prompts, F.embedding(alone.input_ids[0], plain.state_dict()[WORDS])])
            with torch.no_grad():
                logits = plain.model(inputs_embeds=embedded[None]).logits[0, len(prompts) :]
            expected = logits[:-1][batch.labels[index][batch.attention_mask[index].bool()][1:] != -100]
            torch.testing.assert_close(outputs.logits[outputs.rows == index], expected, rtol=1e-4, atol=1e-4)


def test_a_left_padded_batch_with_different_prompts_is_answered_as_one_by_one() -> None:
    torch.manual_seed(0)
    method, backbone = attached()
    with_spread_keys(method)
    for index in range(2):
        learn(method, backbone, index)
    batch = prompt_batch(questions())
    assert not bool(batch.attention_mask.all())  # some rows are padded
    with method.select(backbone, batch) as selection:
        together = backbone.generate(batch, max_new_tokens=5)
    assert selection.slots is not None
    assert len({tuple(ids) for ids in selection.slots.tolist()}) > 2
    assert together == answers_one_by_one(method, backbone, questions(), max_new_tokens=5)


def test_batch_selection_gives_all_samples_the_prompts_most_of_them_chose() -> None:
    method, backbone = attached(replace(TINY, selection="batch"))
    cosines = torch.tensor(
        [[0.9, 0.8, 0, 0, 0, 0.1], [0, 0.8, 0.9, 0, 0, 0.1], [0, 0.7, 0, 0, 0.6, 0.1], [0.5, 0, 0, 0, 0.4, 0]]
    )
    method.begin_task(backbone, task(0))
    assert method._choose(cosines).tolist() == [[0, 1]] * 4  # votes: 2, 3, 1, 0, 2, 0; the first of equals wins
    method.end_task(None, task(0), iter(()))
    assert method._choose(cosines).tolist() == [[0, 1], [1, 2], [1, 4], [0, 4]]  # evaluation: each for itself


def test_diversified_choice_holds_back_what_earlier_tasks_used() -> None:
    """Shares (counts + 1) of [9, 0, 0, 0, 0, 0] are [10, 1, 1, 1, 1, 1] / 15; the smallest (1 - cos) share win."""
    method, backbone = attached(replace(TINY, diversify=True))
    cosines = torch.tensor([[0.9, 0.1, 0.3, 0.2, 0.0, -0.1], [0.99, 0.1, 0.3, 0.2, 0.0, -0.1]])
    method.begin_task(backbone, task(0))
    assert method._choose(cosines).tolist() == [[0, 2], [0, 2]]  # nothing to hold back in the first task
    method.end_task(None, task(0), iter(()))
    method.earlier = torch.tensor([9.0, 0, 0, 0, 0, 0])
    method.begin_task(backbone, task(1))
    # row 0: 0.1 * 10 = 1.0 against 0.9, 0.7, 0.8, 1.0, 1.1;  row 1: 0.01 * 10 = 0.1 against the same
    assert method._choose(cosines).tolist() == [[2, 3], [0, 2]]
    method.end_task(None, task(1), iter(()))
    assert method._choose(cosines).tolist() == [[0, 2], [0, 2]]  # never at test


def test_counts_are_the_choices_of_all_updates_and_survive_an_interruption() -> None:
    torch.manual_seed(0)
    method, backbone = attached(replace(TINY, diversify=True))
    learn(with_spread_keys(method), backbone, 0, updates=3, accumulation=2)
    assert float(method.earlier.sum()) == 3 * 2 * 3 * TINY.top_k  # updates x micro-batches x samples x K
    start = method.state_dict(backbone)
    method.begin_task(backbone, task(1))
    engine, batch = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-9)), training_batch(SUBJECTS["forms"])
    written = torch.zeros(TINY.pool_size)
    for _ in range(2):
        with method.select(backbone, batch) as selection:
            engine.backward(method.loss(backbone, batch, backbone(batch), selection).total)
        assert selection.slots is not None
        for index in selection.slots.flatten().tolist():
            written[index] += 1
        assert method.step(engine)
    assert torch.equal(method.task_state()[COUNTS], written)
    assert torch.equal(start.tensors[COUNTS], method.earlier)  # the start's counts hold nothing of this task
    other = replace(TINY, diversify=True).build(seed=0)
    other_backbone = load_backbone(BackboneConfig(name="pocket"))
    other.attach(other_backbone, start)
    other.begin_task(other_backbone, task(1))
    other.load_task_state(method.task_state())
    for resumed, model in ((method, backbone), (other, other_backbone)):
        resumed.end_task(None, task(1), iter(()))
        assert torch.equal(resumed.state_dict(model).tensors[COUNTS], start.tensors[COUNTS] + written)


def test_training_turns_the_chosen_keys_to_the_instructions() -> None:
    method, backbone = attached()
    queries = method.encoder.encode(SUBJECTS["charts"])

    def mean_cosine() -> float:
        pairs = [(query, method.pool.keys[index]) for query in queries for index in range(TINY.pool_size)]
        return sum(sorted((cosine(*pair) for pair in pairs), reverse=True)[:6]) / 6

    assert mean_cosine() < 0.2  # random directions
    learn(method, backbone, 0, updates=20)
    assert mean_cosine() > 0.5


@pytest.mark.parametrize("start", ["words", "uniform"])
def test_prompts_start_as_random_words_or_in_the_released_range(start: str) -> None:
    method, backbone = attached(replace(TINY, prompt_start=start))
    prompts, words = method.pool.prompts.detach().flatten(0, 1), backbone.state_dict()[WORDS]
    assert method.pool.unit == pytest.approx(float(words.square().mean().sqrt()), rel=0.05)
    found = torch.isclose(prompts[:, None] * method.pool.unit, words, rtol=1e-5, atol=1e-7).all(dim=2).any(dim=1)
    assert bool(found.all()) == (start == "words")
    if start == "uniform":
        assert float(prompts.min()) >= 0.0
        assert float(prompts.max()) < 0.01


def test_the_pool_reads_its_own_parameters() -> None:
    """ZeRO-3 gathers what a module owns itself around its forward."""
    pool = PromptPool(keys=torch.randn(4, 3), prompts=torch.randn(4, 2, 5), unit=1.0)
    assert [name for name, _ in pool.named_parameters(recurse=False)] == ["keys", "prompts"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 7}, "top_k is 7; give 1 to 6"),
        ({"prompt_length": 0}, "prompt_length is 0"),
        ({"pull": -0.5}, "pull is -0.5"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)
