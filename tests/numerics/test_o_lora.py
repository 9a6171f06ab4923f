"""O-LoRA's penalty worked by hand, its branches against dense matrices, and what later tasks must not touch."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from small_stream import attached, batch_of, info, learn, pocket, train
from torch import nn

from components.adapters.penalties import NormPenalty, OverlapPenalty
from components.core.errors import CheckpointError, ConfigError
from components.methods.base import MethodState, copy_tensors
from components.methods.o_lora import NORM, OVERLAP, OLora, OLoraConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import Backbone
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig

TINY = OLoraConfig(rank=4, alpha=8.0)


def o_lora(config: OLoraConfig = TINY) -> tuple[OLora, Backbone]:
    backbone = pocket()
    method = attached(config, backbone)
    assert isinstance(method, OLora)
    return method, backbone


def branch(method: OLora, index: int) -> dict[str, torch.Tensor]:
    return copy_tensors({name: value for name, value in method.parameters().items() if f".groups.{index}." in name})


def test_penalty_of_two_by_two_factors_by_hand() -> None:
    """old [[1, 0], [1, 1]], new [[2, -1], [0, 3]]: old new^T = [[2, 0], [1, 3]]; absolute 6, squared 14.

    The absolute sum's gradient is sign(old new^T)^T old, with sign(0) = 0: [[1, 1], [0, 1]] old = [[2, 1], [1, 1]]. The
    squares' is 2 (old new^T)^T old = 2 [[2, 1], [0, 3]] old = [[6, 2], [6, 6]].
    """
    old = nn.Parameter(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), requires_grad=False)
    new = nn.Parameter(torch.tensor([[2.0, -1.0], [0.0, 3.0]]))
    absolute, squared = OverlapPenalty(new, [old], "absolute")(), OverlapPenalty(new, [old], "squared")()
    assert float(absolute.detach()) == 6.0
    assert float(squared.detach()) == 14.0
    assert torch.autograd.grad(absolute, new)[0].tolist() == [[2.0, 1.0], [1.0, 1.0]]
    assert torch.autograd.grad(squared, new)[0].tolist() == [[6.0, 2.0], [6.0, 6.0]]


@pytest.mark.parametrize("kind", ["absolute", "squared"])
def test_penalty_of_orthogonal_factors_is_zero(kind: str) -> None:
    old = [nn.Parameter(torch.eye(6)[:2]), nn.Parameter(3 * torch.eye(6)[2:3])]
    new = nn.Parameter(torch.cat([torch.zeros(3, 3), torch.arange(9.0).reshape(3, 3)], dim=1))
    assert float(OverlapPenalty(new, old, kind)().detach()) == 0.0  # type: ignore[arg-type]
    new.data[1, 2] = -0.5
    expected = {"absolute": 1.5, "squared": 2.25}[kind]
    assert float(OverlapPenalty(new, old, kind)().detach()) == expected  # type: ignore[arg-type]


def test_norms_by_hand_and_no_gradient_at_zero() -> None:
    factors = [nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.zeros(2, 1))]
    value = NormPenalty(factors)()
    assert float(value.detach()) == 5.0
    down, up = torch.autograd.grad(value, factors)
    torch.testing.assert_close(down, torch.tensor([[0.6, 0.8]]))
    assert not up.any()


@pytest.mark.parametrize("kind", ["absolute", "squared"])
def test_loss_is_the_task_loss_plus_the_weighted_penalties(kind: str) -> None:
    config = replace(TINY, penalty=kind, orthogonality_weight=0.3, norm_weight=0.05)
    method, backbone = o_lora(config)
    learn(method, backbone, "names")
    learn(method, backbone, "others")
    third = replace(info("others"), index=2, name="third")
    method.begin_task(backbone, third)
    train(method, TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2)), "others", updates=2)
    batch = batch_of("others")
    with method.select(backbone, batch) as selection:
        outputs = backbone(batch)
        loss = method.loss(backbone, batch, outputs, selection)
    overlap = norms = 0.0
    for layer in method.bank.layers:
        factors = [branch(method, index) for index in range(3)]
        new = factors[2][f"{layer}.groups.2.down"].double()
        norms += float(new.norm() + factors[2][f"{layer}.groups.2.up"].double().norm())
        for index, row, other in itertools.product(range(2), range(4), range(4)):
            product = float(factors[index][f"{layer}.groups.{index}.down"][row].double() @ new[other])
            overlap += abs(product) if kind == "absolute" else product**2
    assert float(loss.parts["overlap"].detach()) == pytest.approx(overlap, rel=1e-5)
    assert float(loss.parts["norm"].detach()) == pytest.approx(norms, rel=1e-5)
    added = float((loss.total - outputs.loss).detach())
    assert added == pytest.approx(0.3 * overlap + 0.05 * norms, rel=1e-4)
    reached = torch.autograd.grad(loss.total - outputs.loss, list(trainable_parameters(backbone).values()))
    assert all(gradient.any() for gradient in reached)


def test_the_first_task_is_sequential_lora() -> None:
    method, backbone = o_lora()
    sequential = attached(SequentialLoraConfig(rank=4, alpha=8.0), plain := pocket())
    with torch.no_grad():  # the draws differ by the group's name
        method.begin_task(backbone, info("names"))
        for name, value in sequential.parameters().items():
            value.copy_(method.parameters()[name.replace(".lora.", ".0.")])
    sequential.begin_task(plain, info("names"))
    losses = [
        train(learner, TorchEngine(model, OptimizerConfig(learning_rate=1e-2)), "names", updates=4)
        for learner, model in ((method, backbone), (sequential, plain))
    ]
    assert losses[0] == losses[1]


def test_earlier_branches_stay_bit_identical_and_a_new_one_starts_without_effect() -> None:
    method, backbone = o_lora()
    batch, kept = batch_of("names"), []
    for index, rows in enumerate(("names", "others", "names", "others")):
        task = replace(info(rows), index=index, name=f"task{index}")
        backbone.eval()
        with torch.no_grad(), method.select(backbone, batch):
            before = backbone(batch).logits
        method.begin_task(backbone, task)
        with torch.no_grad(), method.select(backbone, batch):
            assert torch.equal(backbone(batch).logits, before)
        assert set(trainable_parameters(backbone)) == set(branch(method, index))
        engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
        fresh = branch(method, index)
        train(method, engine, rows, updates=4)
        method.end_task(engine, task, iter(()))
        engine.close()
        assert all(not torch.equal(branch(method, index)[name], value) for name, value in fresh.items())
        kept.append(branch(method, index))
        for earlier, branch_then in enumerate(kept):
            assert all(torch.equal(branch(method, earlier)[name], value) for name, value in branch_then.items())
    growth = sum(4 * (layer.in_features + layer.out_features) for layer in method.bank.layers.values())
    assert sum(value.numel() for value in method.parameters().values()) == 4 * growth


def test_all_branches_serve_an_answer() -> None:
    """W0 + (alpha / R) sum B_i A_i, as one dense matrix per layer."""
    method, backbone = o_lora()
    for name in ("names", "others"):
        learn(method, backbone, name)
    dense = {}
    for layer_name, layer in method.bank.layers.items():
        matrix = layer.weight.detach().double().clone()
        for index in range(2):
            down, up = (branch(method, index)[f"{layer_name}.groups.{index}.{factor}"] for factor in ("down", "up"))
            matrix += 2.0 * up.double() @ down.double()
        dense[f"{layer_name}.weight"] = matrix.float()
    batch = batch_of("others")
    with torch.no_grad(), method.select(backbone, batch):
        found = backbone(batch).logits
    with torch.no_grad():
        plain = pocket()
        expected = torch.func.functional_call(plain, dense, (batch,)).logits
        assert not torch.allclose(expected, plain(batch).logits, atol=1e-1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def overlap_of(method: OLora) -> float:
    down = [[value for name, value in branch(method, index).items() if name.endswith("down")] for index in range(2)]
    return sum(float((old @ new.T).abs().sum()) for old, new in zip(*down, strict=True))


@pytest.mark.parametrize(("kind", "weight"), [("absolute", 0.1), ("squared", 10.0)])
def test_the_penalty_turns_the_new_branch_away(kind: str, weight: float) -> None:
    reached = {}
    for strength in (0.0, weight):
        method, backbone = o_lora(replace(TINY, penalty=kind, orthogonality_weight=strength))
        learn(method, backbone, "names")
        learn(method, backbone, "others", updates=30, rate=3e-3)
        reached[strength] = overlap_of(method)
    assert reached[weight] < 0.3 * reached[0.0]


def test_the_penalties_are_gone_after_a_task_and_parameters_are_listed_once() -> None:
    method, backbone = o_lora(replace(TINY, norm_weight=0.1))
    learn(method, backbone, "names")
    names = set(backbone.state_dict())
    method.begin_task(backbone, info("others"))
    assert {OVERLAP, NORM} <= {name for name, _ in backbone.named_children()}
    assert {name for name, _ in backbone.named_parameters() if ".groups." in name} == method.parameters().keys()
    method.end_task(TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2)), info("others"), iter(()))
    assert set(backbone.state_dict()) == names | set(branch(method, 1))


def test_a_damaged_checkpoint_is_refused() -> None:
    method, backbone = o_lora()
    learn(method, backbone, "names")
    state = method.state_dict(backbone)
    with pytest.raises(CheckpointError, match="how many tasks were begun"):
        attached(TINY, pocket(), MethodState(tensors=state.tensors, structure={**state.structure, "begun": 3}))
    with pytest.raises(CheckpointError, match="do not fit this backbone"):
        attached(TINY, pocket(), MethodState(tensors=state.tensors, structure={**state.structure, "begun": 2}))
    with pytest.raises(CheckpointError, match="rank = 4, this run asks for 2"):
        attached(replace(TINY, rank=2), pocket(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"orthogonality_weight": -1.0}, r"o_lora\.orthogonality_weight is -1\.0"),
        ({"norm_weight": -0.5}, r"o_lora\.norm_weight is -0\.5"),
        ({"dropout": 1.0}, r"o_lora\.dropout is 1\.0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)
