"""The checks a re-implementation of Continual LLaVA should pass, on pocket, against written-out formulas."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from components.adapters.mixing import Chosen
from components.core.errors import ConfigError
from components.data.batch import Batch, collate
from components.data.rows import Row, Turn
from components.methods.base import Method, TaskInfo
from components.methods.continual_llava import CONTEXT, ContinualLlava, ContinualLlavaConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.models.sentence import load_sentence_encoder
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig

SUBJECTS = {
    "charts": ["Which bar is the highest?", "What value has the red bar?", "How many bars does the chart have?"],
    "forms": ["What is written in the date field?", "Who signed the form?", "What is the total on the page?"],
    "icons": ["Which icon comes next?", "How many icons of a cat are there?", "Is there a star among the icons?"],
}
TINY = ContinualLlavaConfig(sentence_encoder="hash", alignment_min_updates=60)


def task(index: int) -> TaskInfo:
    name = list(SUBJECTS)[index]
    return TaskInfo(index=index, name=name, instructions=SUBJECTS[name])


def text_batch(questions: Sequence[str]) -> Batch:
    encoder = build_encoder(BackboneConfig(name="pocket"))
    examples = []
    for number, question in enumerate(questions):
        turns = (Turn(speaker="human", text=question), Turn(speaker="gpt", text=("yes", "no", "red")[number % 3]))
        row = Row(
            sample_id=str(number), task="t", split="train", turns=turns, answers=("yes",), metric="exact", source="test"
        )
        examples.append(encoder.training_example(row))
    return collate(examples, pad_id=encoder.pad_id, padding_side="right")


def attached(config: ContinualLlavaConfig = TINY) -> tuple[ContinualLlava, Backbone]:
    backbone = load_backbone(BackboneConfig(name="pocket"))
    method = config.build(seed=0)
    method.attach(backbone, None)
    return method, backbone


def learn(method: Method, backbone: Backbone, index: int, *, updates: int = 4, rate: float = 1e-2) -> None:
    info = task(index)
    batch = text_batch(info.instructions)
    method.begin_task(backbone, info)
    config = OptimizerConfig(learning_rate=rate)
    engine = TorchEngine(backbone, config, rates=method.learning_rates())
    backbone.train()
    for update in range(updates):
        if updates > 4:  # the few updates of most tests stay at the peak
            engine.set_learning_rate(config.rate_at(update, updates))
        with ExitStack() as scope:
            enter = partial(scope.enter_context, method.select(backbone, batch))
            outputs, selection = engine.forward(batch, enter)
            loss = method.loss(backbone, batch, outputs, selection)
            engine.backward(loss.total)
        method.step(engine)
    method.end_task(engine, info, iter(()))
    engine.close()
    backbone.eval()


def logits(method: Method, backbone: Backbone, batch: Batch) -> torch.Tensor:
    with torch.no_grad(), method.select(backbone, batch):
        return backbone(batch).logits


def test_1_before_training_the_model_equals_the_base() -> None:
    method, backbone = attached()
    batch = text_batch(SUBJECTS["charts"])
    with torch.no_grad():
        expected = backbone(batch).logits
    method.begin_task(backbone, task(0))
    assert torch.equal(logits(method, backbone, batch), expected)
    downs = torch.cat([value.flatten() for key, value in method.parameters().items() if key.endswith("down")])
    assert float(downs.detach().std()) == pytest.approx(1.0, abs=0.02)  # the other factor, as the paper draws it


def test_2_the_first_task_has_no_contextual_part() -> None:
    batch = text_batch(SUBJECTS["charts"])
    trained = []
    for components in ("both", "intrinsic"):
        method, backbone = attached(replace(TINY, components=components))
        method.begin_task(backbone, task(0))
        assert not [name for name in trainable_parameters(backbone) if name.startswith(CONTEXT)]
        method, backbone = attached(replace(TINY, components=components))
        learn(method, backbone, 0)
        trained.append(logits(method, backbone, batch))
    assert torch.equal(*trained)
    method, backbone = attached(replace(TINY, components="contextual"))
    with torch.no_grad():
        expected = backbone(batch).logits
    learn(method, backbone, 0)
    assert torch.equal(logits(method, backbone, batch), expected)


@pytest.mark.parametrize("pool", ["owned", "shared"])
def test_3_later_tasks_leave_old_slots_keys_and_scalars_bit_identical(pool: str) -> None:
    method, backbone = attached(replace(TINY, pool=pool, pool_size=8))
    learn(method, backbone, 0)
    learn(method, backbone, 1)
    before = method.state_dict(backbone).tensors
    learn(method, backbone, 2)
    after = method.state_dict(backbone).tensors
    for name, value in before.items():
        if pool == "shared" and (".groups.pool." in name or name == "routing.keys"):
            assert not torch.equal(after[name], value), name  # what sharing means
        elif name == "routing.keys":
            assert torch.equal(after[name][:16], value)
            assert after[name].shape[0] == 24
        elif name == "routing.shares":
            assert torch.equal(after[name][:2], value)
        else:
            assert torch.equal(after[name], value), name
    scalars = [name for name in before if name.startswith(CONTEXT)]
    assert scalars == [f"{CONTEXT}.task_1"]


def test_4_with_the_oracle_nothing_is_forgotten() -> None:
    method, backbone = attached()
    batches = [replace(text_batch(questions), oracle_task=name) for name, questions in SUBJECTS.items()]
    learned: list[torch.Tensor] = []
    for index in range(3):
        learn(method, backbone, index)
        learned.append(logits(method, backbone, batches[index]))
        for earlier in range(index):
            torch.testing.assert_close(logits(method, backbone, batches[earlier]), learned[earlier], rtol=0, atol=0)
    assert not torch.equal(logits(method, backbone, replace(batches[0], oracle_task="icons")), learned[0])


def dense_weights(
    method: ContinualLlava, tensors: dict[str, torch.Tensor], question: str, config: ContinualLlavaConfig
) -> dict[str, torch.Tensor]:
    """W0 + dTheta + dDelta of every layer for one instruction, built from the stored state alone."""
    size, rank = config.slots_per_task, config.rank
    keys, shares = tensors["routing.keys"], tensors["routing.shares"]
    query = load_sentence_encoder("hash").encode([question])[0]
    cosines = torch.stack(
        [
            F.cosine_similarity(query.chunk(config.key_groups)[j], keys.chunk(config.key_groups, dim=1)[j], dim=1)
            for j in range(config.key_groups)
        ]
    ).mean(dim=0)
    best = sorted(range(len(keys)), key=lambda n: -float(cosines[n]))[: config.top_m]
    if config.weighting == "ratio":
        alpha = {n: float(cosines[n]) / sum(float(cosines[m]) for m in best) for n in best}
    else:
        exponentials = {n: float((cosines[n] / config.temperature).exp()) for n in best}
        alpha = {n: value / sum(exponentials.values()) for n, value in exponentials.items()}
    weights = [alpha.get(n, 0.0) for n in range(len(keys))]
    for slot, share in alpha.items():
        owner = slot // size
        for earlier in range(owner):
            raw = float(tensors[f"{CONTEXT}.task_{owner}"][earlier])
            scalar = 1 / (1 + 2.718281828459045**-raw) if config.contextual_range == "sigmoid" else min(max(raw, 0), 1)
            for n in range(size):
                weights[earlier * size + n] += share * scalar * float(shares[earlier, n])
    result = {}
    for layer_name, layer in method.bank.layers.items():
        matrix = layer.weight.detach().double().clone()
        for n, weight in enumerate(weights):
            group, rows = str(n // size), slice((n % size) * rank, (n % size + 1) * rank)
            up, down = (tensors[f"{layer_name}.groups.{group}.{factor}"].double() for factor in ("up", "down"))
            matrix += weight * up[:, rows] @ down[rows]
        result[f"{layer_name}.weight"] = matrix.float()
    return result


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, weighting="softmax", key_groups=1),
        replace(TINY, contextual_range="clamp", increment_init="lora"),
    ],
    ids=["recommended", "softmax-one-group", "clamp-lora"],
)
def test_5_factors_equal_the_dense_matrices(config: ContinualLlavaConfig) -> None:
    method, backbone = attached(config)
    for index in range(3):
        learn(method, backbone, index)
    tensors = method.state_dict(backbone).tensors
    questions = [question for subject in SUBJECTS.values() for question in subject[:2]]
    plain = load_backbone(BackboneConfig(name="pocket"))
    mixed = 0
    for question in questions:
        batch = text_batch([question])
        dense = dense_weights(method, tensors, question, config)
        with torch.no_grad():
            expected = torch.func.functional_call(plain, dense, (batch,)).logits
        torch.testing.assert_close(logits(method, backbone, batch), expected, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            mixed += not torch.allclose(expected, plain(batch).logits, atol=1e-1)
    assert mixed == len(questions)  # the increments are large enough for the comparison to mean something


@pytest.mark.parametrize("weighting", ["ratio", "softmax"])
def test_6_weights_sum_to_one(weighting: str) -> None:
    method, backbone = attached(replace(TINY, weighting=weighting, components="intrinsic"))
    for index in range(2):
        learn(method, backbone, index, updates=1)
    batch = text_batch([*SUBJECTS["charts"], "?", "zzz qqq", "1 2 3"])
    with method.select(backbone, batch) as selection:
        scales = list(method.bank.mixing.scales.values())
    parts = [scale.scale if isinstance(scale, Chosen) else torch.as_tensor(scale) for scale in scales]
    total = torch.stack([part[:, 0, :: TINY.rank].sum(dim=1) for part in parts]).sum(dim=0)
    torch.testing.assert_close(total, torch.ones(6), rtol=0, atol=1e-6)
    assert selection.slots is not None
    assert selection.slots.shape == (6, 4)


def test_7_stage_one_needs_no_language_model() -> None:
    """Keys are aligned in a process that never imports a model."""
    code = (
        "import sys, torch\n"
        "from components.methods.continual_llava import ContinualLlavaConfig\n"
        "from components.methods.common.slot_pool import SlotPool\n"
        "pool = SlotPool(ContinualLlavaConfig(alignment_min_updates=30).pool_options)\n"
        "queries = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))\n"
        "pool.align(0, queries, torch.arange(9), torch.Generator().manual_seed(0))\n"
        "assert pool.keys.shape == (8, 64)\n"
        "assert not [name for name in sys.modules if name.startswith(('transformers', 'components.models.backbone'))]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_contextual_scalars_learn_and_earlier_increments_do_not() -> None:
    method, backbone = attached()
    learn(method, backbone, 0)
    info, batch = task(1), text_batch(SUBJECTS["forms"])
    method.begin_task(backbone, info)
    with method.select(backbone, batch):
        backbone(batch).loss.backward()
    gradients = {name: parameter.grad for name, parameter in method.parameters().items()}
    scalar = gradients[f"{CONTEXT}.task_1"]
    assert scalar is not None
    assert float(scalar.abs()) > 0
    assert all(gradient is None for name, gradient in gradients.items() if ".groups.0." in name)


def test_scalars_move_at_their_own_rate_and_hardly_at_the_increments() -> None:
    """Sixty cosine updates: at the increments' 5e-4 Adam moves a logit by about 60 * 5e-4 / 2 = 0.015 at most."""
    moved = {}
    for rate in (ContinualLlavaConfig().contextual_learning_rate, None):
        method, backbone = attached(replace(TINY, contextual_learning_rate=rate))
        for index in range(3):
            learn(method, backbone, index, updates=60 if index == 2 else 2, rate=5e-4)
        told = method.decisions()
        assert told["charts"].keys() == {"slots", "slots_used"}  # the first task has no earlier one
        slots = told["charts"]["slots"]
        assert isinstance(slots, list)
        assert sum(slots) == pytest.approx(1.0)  # type: ignore[arg-type]
        w, steps = told["icons"]["w"], told["icons"]["w_moved"]
        assert isinstance(w, dict)
        assert isinstance(steps, dict)
        logits = method.state_dict(backbone).tensors[f"{CONTEXT}.task_2"]
        assert list(w.values()) == pytest.approx(logits.sigmoid().tolist())
        assert {name: value - steps[name] for name, value in w.items()} == pytest.approx({"charts": 0.5, "forms": 0.5})  # type: ignore[operator]
        moved[rate] = max(map(abs, steps.values()))  # type: ignore[arg-type]
    assert moved[None] < 0.02 / 4  # the slope of a sigmoid is at most 1/4
    assert 0.1 < moved[0.05] < 0.45


@pytest.mark.parametrize("components", ["both", "contextual"])
def test_a_constant_w_stays_and_a_w_of_zero_is_no_context(components: str) -> None:
    if components == "both":
        trained = []
        for config in (replace(TINY, contextual="zero"), replace(TINY, components="intrinsic")):
            method, backbone = attached(config)
            for index in range(3):
                learn(method, backbone, index)
            assert not [name for name in method.parameters() if name.startswith(CONTEXT)]
            trained.append(logits(method, backbone, text_batch(SUBJECTS["icons"])))
        assert torch.equal(*trained)
    method, backbone = attached(replace(TINY, contextual="constant", components=components))
    for index in range(3):
        learn(method, backbone, index)
    told = method.decisions()
    assert told["forms"]["w"] == {"charts": pytest.approx(0.95)}
    assert told["icons"]["w"] == {"charts": 0.5, "forms": 0.5}
    assert told["icons"]["w_moved"] == {"charts": 0.0, "forms": 0.0}


def test_contextual_scalars_belong_to_the_module_whose_forward_reads_them() -> None:
    """ZeRO-3 gathers a module's own parameters around its forward; a child container's would stay partitioned."""
    method, backbone = attached()
    for index in range(3):
        learn(method, backbone, index, updates=1)
    context = method.context
    assert [name for name, _ in context.named_parameters(recurse=False)] == ["task_1", "task_2"]
    assert len(list(context.parameters())) == 2


def test_shared_pool_weighs_frozen_copies_of_earlier_pools() -> None:
    method, backbone = attached(replace(TINY, pool="shared", pool_size=8))
    assert not method.is_routed
    for index in range(3):
        learn(method, backbone, index)
    names = {name.split(".groups.")[1].split(".")[0] for name in method.parameters() if ".groups." in name}
    assert names == {"pool", "0", "1"}
    with method.select(backbone, text_batch(SUBJECTS["forms"])) as selection:
        assert selection.routed_to is None
        constant = method.bank.mixing.constant
    assert constant is not None
    weights = dict(constant.weights)
    assert weights.keys() == {"0", "1"}
    shares, tensors = method.pool.shares, method.state_dict(backbone).tensors
    for earlier in range(2):
        expected = shares[earlier] * tensors[f"{CONTEXT}.task_2"][earlier].sigmoid()
        torch.testing.assert_close(torch.tensor(weights[str(earlier)]), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"top_m": 9}, "top_m is 9; give 1 to 8"), ({"rank": 0}, "rank is 0"), ({"temperature": 0.0}, "temperature")],
)
def test_impossible_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves nothing to evaluate"):
        replace(TINY, components="contextual", contextual="zero")


def test_key_groups_that_do_not_divide_the_encoder_are_refused() -> None:
    method, backbone = attached(replace(TINY, key_groups=7))
    with pytest.raises(ConfigError, match="key_groups is 7"):
        method.begin_task(backbone, task(0))


def test_a_task_without_instructions_is_refused() -> None:
    method, backbone = attached()
    with pytest.raises(ConfigError, match="no instructions"):
        method.begin_task(backbone, TaskInfo(index=0, name="empty", instructions=[]))
