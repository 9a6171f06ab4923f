"""CL-MoE against a loop over experts, against MoELoRA, and against cases worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from components.adapters.dual_router import DualRouterLinear, TaskGates
from components.adapters.experts import GateRecord
from components.core.errors import CheckpointError, ConfigError
from components.data.batch import IGNORE, Batch
from components.methods.base import Method, MethodState, TaskInfo
from components.methods.cl_moe import ClMoe, ClMoeConfig, count_leaders, former_shares, task_gates, used
from components.methods.moelora import MoeLoraConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig

D_IN, D_OUT, NUM_EXPERTS, RANK, SCALE, BETA = 24, 16, 4, 8, 1.75, 0.3
FACTORS = ("router", "down", "up")


def test_gates_of_token_and_task_equal_a_loop_over_experts() -> None:
    """Values and gradients, for the second of two layers, and without task gates."""
    torch.manual_seed(0)
    layer = DualRouterLinear(
        nn.Linear(D_IN, D_OUT),
        num_experts=NUM_EXPERTS,
        rank=RANK,
        scale=SCALE,
        dropout=0.0,
        record=GateRecord(),
        task_gates=TaskGates(BETA),
        position=1,
    )
    with torch.no_grad():
        for factor in FACTORS:
            layer.get_parameter(factor).normal_(0.0, 0.5)
    x = torch.randn(3, 5, D_IN, requires_grad=True)
    rows = torch.rand(2, 3, NUM_EXPERTS).softmax(dim=-1)
    size = RANK // NUM_EXPERTS
    for task_level, beta in ((rows, BETA), (None, 1.0)):
        with layer.task_gates.using(task_level):
            output = layer(x)
        samples = []
        for sample in range(3):
            tokens = []
            for token in x[sample]:
                own = (layer.router @ token).exp() / (layer.router @ token).exp().sum()
                value = layer.weight @ token + layer.bias
                for expert in range(NUM_EXPERTS):
                    gate = beta * own[expert] + (1.0 - beta) * rows[1, sample, expert]
                    part = slice(expert * size, (expert + 1) * size)
                    value = value + SCALE * gate * (layer.up[:, part] @ (layer.down[part] @ token))
                tokens.append(value)
            samples.append(torch.stack(tokens))
        expected = torch.stack(samples)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        inputs = [x, *(layer.get_parameter(factor) for factor in FACTORS)]
        found = torch.autograd.grad(output.square().sum(), inputs)
        for ours, loops in zip(found, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
            torch.testing.assert_close(ours, loops, rtol=1e-4, atol=1e-5 * float(loops.abs().max()))


# ---- counts, roles and shares, by hand ---------------------------------------------------------------------------


def test_counted_leaders() -> None:
    """Token 1 leads with experts 2, 0; token 2 with 1, 2; token 3 has two equal largest gates and does not count."""
    gates = torch.tensor([[[0.3, 0.1, 0.6], [0.1, 0.5, 0.4], [0.4, 0.2, 0.4]]])
    assert count_leaders(gates).tolist() == [[1.0, 1.0, 2.0]]


def test_counts_stay_exact_beyond_float32() -> None:
    """2^24 + 1 is no float32 number."""
    assert count_leaders(torch.tensor([[[0.9, 0.1]]])).add(2.0**24)[0, 0].item() == 2**24 + 1


def test_used_experts_and_their_shares() -> None:
    """30, 10, 10, 50: the two most used are 3 and 0, as 5/8 and 3/8. Equal ones: the first. Unused ones never."""
    uses = torch.tensor([[30.0, 10.0, 10.0, 50.0], [0.0, 7.0, 7.0, 7.0], [0.0, 4.0, 0.0, 0.0], [0.0] * 4])
    assert used(uses, 2).tolist() == [
        [True, False, False, True],
        [False, True, True, False],
        [False, True, False, False],
        [False] * 4,
    ]
    shares = [[0.375, 0.0, 0.0, 0.625], [0.0, 0.5, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0], [0.25] * 4]
    torch.testing.assert_close(task_gates(uses, 2), torch.tensor(shares))


def test_shares_of_former_values() -> None:
    """The former task uses 0 and 1, the new one 1 and 2; 3 is nobody's. With lists of all, nobody is specific."""
    old, new = torch.tensor([[9.0, 8.0, 1.0, 1.0]]), torch.tensor([[1.0, 8.0, 9.0, 1.0]])
    expected = {"old": [0.25, 0.75, 0.75, 0.75], "new": [0.75, 0.75, 0.25, 0.75]}
    for specific, shares in expected.items():
        found = former_shares(old, new, top=2, momentum=0.75, specific=specific)  # type: ignore[arg-type]
        assert found.tolist() == [shares]
        assert former_shares(old, new, top=4, momentum=0.75, specific=specific).tolist() == [[0.75] * 4]  # type: ignore[arg-type]


# ---- the method on the pocket model ------------------------------------------------------------------------------

COUNTING = TaskInfo(index=0, name="counting", instructions=["How many apples are there?", "How many pears are there?"])
COLOURS = TaskInfo(index=1, name="colours", instructions=["What colour has the car?", "What colour has the boat?"])


def token_batch(seed: int = 0) -> Batch:
    """Three rows of 5, 8 and 11 tokens, right-padded; the last three of each are answers."""
    lengths, longest = (5, 8, 11), 11
    ids = torch.randint(5, 60, (3, longest), generator=torch.Generator().manual_seed(seed))
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
        labels[row, length - 3 : length] = ids[row, length - 3 : length]
    return Batch(sample_ids=["a", "b", "c"], instructions=["x"] * 3, input_ids=ids, attention_mask=mask, labels=labels)


def attached(config: ClMoeConfig | MoeLoraConfig, state: MethodState | None = None) -> tuple[Backbone, Method]:
    model = load_backbone(BackboneConfig(name="pocket"))
    method = config.build(seed=0)
    method.attach(model, state)
    return model, method


def update(model: Backbone, method: Method, engine: TorchEngine, batch: Batch) -> float:
    """One micro-batch; an optimizer update where the engine is at its boundary."""
    model.train()
    with method.select(model, batch) as selection:
        loss = method.loss(model, batch, model(batch), selection).total
        engine.backward(loss)
    method.step(engine)
    return float(loss.detach())


def learned(model: Backbone, method: Method, task: TaskInfo, *, updates: int = 3) -> dict[str, Tensor]:
    """Learn a task; the parameters as they were before `end_task`."""
    method.begin_task(model, task)
    engine = TorchEngine(model, OptimizerConfig(learning_rate=2e-2))
    for _ in range(updates):
        update(model, method, engine, token_batch(task.index))
    trained = {name: value.detach().clone() for name, value in method.parameters().items()}
    method.end_task(engine, task, iter(()))
    return trained


def test_a_task_is_trained_as_moelora() -> None:
    """The same draw and three updates: the same bits, from the first task's start on."""
    ours, theirs = (learned(*attached(config), COUNTING) for config in (ClMoeConfig.tiny(), MoeLoraConfig()))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("specific", ["old", "new"])
def test_the_momentum_update_of_every_expert(specific: str) -> None:
    """Slice by slice with the shares that the counts imply; nothing after the first task, routers never."""
    size = 32 // 4
    model, method = attached(replace(ClMoeConfig.tiny(), specific=specific, statistics="layer"))  # type: ignore[arg-type]
    assert isinstance(method, ClMoe)
    first = learned(model, method, COUNTING)
    assert all(torch.equal(method.parameters()[name], value) for name, value in first.items())
    second = learned(model, method, COLOURS)
    seen = set()
    for position, name in enumerate(method.experts.layers):
        listed = []
        for uses in method.uses:
            order = sorted(range(4), key=lambda expert: (-uses[position, expert], expert))
            listed.append({expert for expert in order[:2] if uses[position, expert] > 0})
        alone = listed[0] - listed[1] if specific == "old" else listed[1] - listed[0]
        assert torch.equal(method.parameters()[f"{name}.router"], second[f"{name}.router"])
        for expert in range(4):
            share = 0.3 if expert in alone else 0.7
            seen.add(share)
            part = slice(expert * size, (expert + 1) * size)
            for factor, cut in (("down", (part, slice(None))), ("up", (slice(None), part))):
                key = f"{name}.{factor}"
                expected = share * first[key][cut] + (1.0 - share) * second[key][cut]
                torch.testing.assert_close(method.parameters()[key][cut], expected, rtol=1e-5, atol=1e-7)
                assert not torch.equal(first[key][cut], second[key][cut])
    assert seen == {0.3, 0.7}


def test_counts_are_those_of_the_gates_of_real_tokens_in_all_updates() -> None:
    """Recomputed from the routers' inputs; accumulation and a resume in the middle change nothing."""
    model, method = attached(ClMoeConfig.tiny())
    assert isinstance(method, ClMoe)
    method.begin_task(model, COUNTING)
    engine = TorchEngine(model, OptimizerConfig(learning_rate=2e-2), accumulation=2)
    real = token_batch().attention_mask.bool()
    expected = torch.zeros(len(method.experts.layers), 4, dtype=torch.float64)
    inputs: dict[str, Tensor] = {}
    for name, layer in method.experts.layers.items():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].detach()}))
    for _ in range(4):
        routers = {name: layer.router.detach().clone() for name, layer in method.experts.layers.items()}
        update(model, method, engine, token_batch())
        for position, name in enumerate(method.experts.layers):
            for token in inputs[name][real]:
                order = (routers[name] @ token).argsort(descending=True)
                expected[position, order[:2]] += 1.0
    # argsort and softmax may order near-equal gates differently; on this case they do not
    assert torch.equal(method.task_state()["counts"], expected)
    assert float(expected.sum()) == 4 * 2 * len(method.experts.layers) * int(real.sum())
    state, halfway = method.state_dict(model), method.task_state()
    other_model, other = attached(ClMoeConfig.tiny())
    assert isinstance(other, ClMoe)
    other.begin_task(other_model, COUNTING)
    other.load_task_state(halfway)
    assert torch.equal(other.task_state()["counts"], expected)
    again_model, again = attached(ClMoeConfig.tiny(), state)
    again.begin_task(again_model, COUNTING)
    assert torch.equal(again.task_state()["counts"], expected)


def test_a_task_continued_from_its_middle_is_averaged_with_its_start() -> None:
    model, method = attached(ClMoeConfig.tiny())
    first = learned(model, method, COUNTING)
    method.begin_task(model, COLOURS)
    engine = TorchEngine(model, OptimizerConfig(learning_rate=2e-2))
    update(model, method, engine, token_batch())
    other_model, other = attached(ClMoeConfig.tiny(), method.state_dict(model))
    assert isinstance(other, ClMoe)
    other.begin_task(other_model, COLOURS)
    assert all(torch.equal(value, first[name]) for name, value in other.before.items())
    method.end_task(engine, COLOURS, iter(()))
    other.end_task(None, COLOURS, iter(()))
    assert all(torch.equal(value, other.parameters()[name]) for name, value in method.parameters().items())


def test_the_nearest_centre_chooses_the_tasks_gates() -> None:
    """After two tasks the layers see the counts of the task whose instructions the sample's are like, per sample."""
    model, method = attached(ClMoeConfig.tiny())
    assert isinstance(method, ClMoe)
    learned(model, method, COUNTING)
    learned(model, method, COLOURS)
    model.eval()
    asks = ["What colour has the bus?", "How many plums are there?", "What colour has the door?"]
    batch = replace(token_batch(), instructions=asks)
    with method.select(model, batch) as selection:
        assert selection.slots is not None
        assert selection.slots.tolist() == [[1], [0], [1]]
        assert selection.routed_to is None
        rows = method.experts.task_gates.rows
        assert rows is not None
        for sample, task in enumerate((1, 0, 1)):
            total = method.uses[task].sum(dim=0)  # over layers
            two = total.topk(2)
            expected = torch.zeros(4, dtype=torch.float64).scatter(0, two.indices, two.values / two.values.sum())
            for position in range(len(method.experts.layers)):
                torch.testing.assert_close(rows[position, sample].double(), expected, rtol=1e-6, atol=1e-6)
    assert method.experts.task_gates.rows is None


def test_beta_1_answers_like_moelora_and_training_has_no_task_level() -> None:
    model, method = attached(replace(ClMoeConfig.tiny(), beta=1.0))
    assert isinstance(method, ClMoe)
    learned(model, method, COUNTING)
    model.eval()
    batch = token_batch()
    with method.select(model, batch) as selection:
        assert selection.slots is None
        alone = model(batch).logits
    model_2, method_2 = attached(ClMoeConfig.tiny())
    assert isinstance(method_2, ClMoe)
    learned(model_2, method_2, COUNTING)
    model_2.eval()
    with method_2.select(model_2, batch):
        assert not torch.equal(model_2(batch).logits, alone)
    method_2.begin_task(model_2, COLOURS)
    with method_2.select(model_2, batch):
        assert torch.equal(model_2(batch).logits, alone)


def test_everything_trains_on_every_task() -> None:
    model, method = attached(ClMoeConfig.tiny())
    learned(model, method, COUNTING)
    assert not trainable_parameters(model)
    method.begin_task(model, COLOURS)
    assert set(trainable_parameters(model)) == set(method.parameters())


def test_router_entropy_of_even_gates() -> None:
    """Routers of zeros: log 4, and no token has a leader."""
    model, method = attached(ClMoeConfig.tiny())
    method.begin_task(model, COUNTING)
    with torch.no_grad():
        for name, parameter in method.parameters().items():
            if name.endswith("router"):
                parameter.zero_()
    batch = token_batch()
    with method.select(model, batch) as selection:
        outputs = model(batch)
        loss = method.loss(model, batch, outputs, selection)
    assert torch.equal(loss.total, outputs.loss)
    assert float(loss.parts["router_entropy"]) == pytest.approx(math.log(4), rel=1e-5)
    assert isinstance(method, ClMoe)
    assert not method.pending.any()


def test_a_state_without_a_tasks_counts_is_refused() -> None:
    model, method = attached(ClMoeConfig.tiny())
    learned(model, method, COUNTING)
    state = method.state_dict(model)
    fewer = {name: tensor for name, tensor in state.tensors.items() if name != "tasks.counts"}
    with pytest.raises(CheckpointError, match="lacks a task's counts"):
        attached(ClMoeConfig.tiny(), MethodState(tensors=fewer, structure=state.structure))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 32, "num_experts": 5}, "rank is 32 and num_experts 5"),
        ({"num_experts": 1}, "at least 2 experts"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"momentum": 1.2}, "momentum is 1.2"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"top_experts": 5}, "give 1 to num_experts = 4"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClMoeConfig(**options)  # type: ignore[arg-type]
