"""RegLoRA's marks against a written-out sort, its penalty against loops, and what later tasks must not touch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_stream import attached, batch_of, info, learn, pocket, train
from torch import nn

from components.adapters.penalties import MarkedPenalty
from components.core.errors import CheckpointError, ConfigError
from components.methods.base import MethodState, TaskInfo, copy_tensors
from components.methods.reg_lora import MARKS, PENALTY, RegLora, RegLoraConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import Backbone
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig

TINY = RegLoraConfig(rank=4, alpha=8.0)


def reg_lora(config: RegLoraConfig = TINY) -> tuple[RegLora, Backbone]:
    backbone = pocket()
    method = attached(config, backbone)
    assert isinstance(method, RegLora)
    return method, backbone


def branch(method: RegLora, index: int) -> dict[str, torch.Tensor]:
    return copy_tensors({name: value for name, value in method.parameters().items() if f".groups.{index}." in name})


def update(method: RegLora, layer: str, index: int) -> torch.Tensor:
    """up down [d_out, d_in] of one branch, float64."""
    factors = branch(method, index)
    up, down = (factors[f"{layer}.groups.{index}.{name}"].double() for name in ("up", "down"))
    return up @ down


def numbered(index: int) -> TaskInfo:
    """Tasks beyond the stream's two, which take its rows in turn."""
    return replace(info(["names", "others"][index % 2]), index=index, name=f"task{index}")


def learn_numbered(method: RegLora, backbone: Backbone, index: int, *, updates: int = 4) -> None:
    method.begin_task(backbone, numbered(index))
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    train(method, engine, ["names", "others"][index % 2], updates=updates)
    method.end_task(engine, numbered(index), iter(()))
    engine.close()
    backbone.eval()


def written_out_marks(matrix: torch.Tensor, share: float) -> list[int]:
    """Places of the largest magnitudes, by sorting all of them in Python."""
    width = matrix.shape[1]
    places = [
        (abs(float(matrix[row, column])), row * width + column) for row in range(len(matrix)) for column in range(width)
    ]
    return sorted(place for _, place in sorted(places, reverse=True)[: int(share * len(places))])


def test_penalty_by_hand() -> None:
    """up [[1], [-2]], down [[3, 0, -1]]: up down = [[3, 0, -1], [-6, 0, 2]].

    Marks 0, 2, 3 -> (3 + 1 + 6) / 3; with 3 listed twice (3 + 1 + 6 + 6) / 4 = 4. The latter's gradients: with
    s = [[1/4, 0, -1/4], [-2/4, 0, 0]] = d penalty / d (up down), d up = s down^T = [[1], [-1.5]], d down = up^T s =
    [[1.25, 0, -0.25]].
    """
    down, up = nn.Parameter(torch.tensor([[3.0, 0.0, -1.0]])), nn.Parameter(torch.tensor([[1.0], [-2.0]]))
    assert float(MarkedPenalty(down, up, torch.tensor([0, 2, 3]))().detach()) == pytest.approx(10 / 3)
    value = MarkedPenalty(down, up, torch.tensor([3, 0, 2, 3], dtype=torch.int32))()
    assert float(value.detach()) == 4.0
    assert [gradient.tolist() for gradient in torch.autograd.grad(value, [up, down])] == [
        [[1.0], [-1.5]],
        [[1.25, 0.0, -0.25]],
    ]


def test_a_new_branch_starts_without_penalty_and_without_its_gradient() -> None:
    """At up = 0 the product is zero and |x| has the gradient 0 there: the first step is the task's alone."""
    down, up = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.zeros(3, 2))
    value = MarkedPenalty(down, up, torch.tensor([1, 7]))()
    assert float(value.detach()) == 0.0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, [up, down]))


def test_a_task_marks_the_largest_entries_of_its_own_update() -> None:
    method, backbone = reg_lora()
    for index in range(2):
        learn_numbered(method, backbone, index)
    for layer in method.bank.layers:
        expected = [written_out_marks(update(method, layer, index), 0.02) for index in range(2)]
        assert len(expected[0]) == int(0.02 * method.bank.layers[layer].weight.numel())
        assert method.memory[f"{MARKS}{layer}"].tolist() == expected[0] + expected[1]


@pytest.mark.parametrize("repeated", ["sum", "union"])
def test_loss_is_the_task_loss_plus_the_weighted_mean(repeated: str) -> None:
    method, backbone = reg_lora(replace(TINY, marked_share=0.3, penalty_weight=7.0, repeated=repeated))
    marks: dict[str, list[int]] = {layer: [] for layer in method.bank.layers}
    for index in range(2):
        learn_numbered(method, backbone, index)
        for layer, places in marks.items():
            places.extend(written_out_marks(update(method, layer, index), 0.3))
    assert any(len(set(places)) < len(places) for places in marks.values())  # otherwise the options are the same
    method.begin_task(backbone, numbered(2))
    train(method, TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2)), "names", updates=2)
    batch = batch_of("names")
    with method.select(backbone, batch) as selection:
        outputs = backbone(batch)
        loss = method.loss(backbone, batch, outputs, selection)
    means = []
    for layer, places in marks.items():
        new = update(method, layer, 2).flatten()
        listed = places if repeated == "sum" else sorted(set(places))
        means.append(sum(abs(float(new[place])) for place in listed) / len(listed))
    expected = sum(means) / len(means)
    assert float(loss.parts["marked"].detach()) == pytest.approx(expected, rel=1e-4)
    added = float((loss.total - outputs.loss).detach())
    assert added == pytest.approx(7.0 * expected, rel=1e-3)
    reached = torch.autograd.grad(loss.total - outputs.loss, list(trainable_parameters(backbone).values()))
    assert all(gradient.any() for gradient in reached)


def test_the_first_task_is_sequential_lora() -> None:
    method, backbone = reg_lora()
    sequential = attached(SequentialLoraConfig(rank=4, alpha=8.0), plain := pocket())
    method.begin_task(backbone, info("names"))
    with torch.no_grad():  # the draws differ by the group's name
        for name, value in sequential.parameters().items():
            value.copy_(method.parameters()[name.replace(".lora.", ".0.")])
    sequential.begin_task(plain, info("names"))
    losses = [
        train(learner, TorchEngine(model, OptimizerConfig(learning_rate=1e-2)), "names", updates=4)
        for learner, model in ((method, backbone), (sequential, plain))
    ]
    assert losses[0] == losses[1]


def test_earlier_branches_stay_bit_identical_and_all_serve() -> None:
    """W0 + (alpha / R) sum B_i A_i, as one dense matrix per layer."""
    method, backbone = reg_lora()
    kept = []
    for index in range(3):
        learn_numbered(method, backbone, index)
        kept.append(branch(method, index))
        for earlier, then in enumerate(kept):
            assert all(torch.equal(branch(method, earlier)[name], value) for name, value in then.items())
    dense = {
        f"{name}.weight": (layer.weight.double() + 2.0 * sum(update(method, name, index) for index in range(3))).float()
        for name, layer in method.bank.layers.items()
    }
    batch = batch_of("others")
    with torch.no_grad(), method.select(backbone, batch):
        found = backbone(batch).logits
    with torch.no_grad():
        plain = pocket()
        expected = torch.func.functional_call(plain, dense, (batch,)).logits
        assert not torch.allclose(expected, plain(batch).logits, atol=1e-1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_penalty_keeps_a_new_update_off_the_marks() -> None:
    """Magnitude on the marks, in units of the whole update's mean magnitude: well below 1 with, near 1 without."""
    ratios = {}
    for weight in (0.0, TINY.penalty_weight):
        method, backbone = reg_lora(replace(TINY, penalty_weight=weight))
        learn(method, backbone, "names")
        marks = {layer: method.memory[f"{MARKS}{layer}"].long() for layer in method.bank.layers}
        losses = learn(method, backbone, "others", updates=30, rate=3e-3)
        assert losses[-1] < 0.6 * losses[0]
        new = {layer: update(method, layer, 1).flatten().abs() for layer in marks}
        ratios[weight] = sum(float(new[layer][marks[layer]].mean() / new[layer].mean()) for layer in marks) / len(marks)
    assert ratios[TINY.penalty_weight] < 0.5 * ratios[0.0]


def test_the_penalty_is_gone_after_a_task_and_parameters_are_listed_once() -> None:
    method, backbone = reg_lora()
    learn(method, backbone, "names")
    names = set(backbone.state_dict())
    method.begin_task(backbone, info("others"))
    assert PENALTY in {name for name, _ in backbone.named_children()}
    assert {name for name, _ in backbone.named_parameters() if ".groups." in name} == method.parameters().keys()
    method.end_task(TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2)), info("others"), iter(()))
    assert set(backbone.state_dict()) == names | set(branch(method, 1))


def test_a_checkpoint_without_its_marks_is_refused() -> None:
    method, backbone = reg_lora()
    learn(method, backbone, "names")
    state = method.state_dict(backbone)
    fewer = {name: value for name, value in state.tensors.items() if MARKS not in name}
    with pytest.raises(CheckpointError, match="marks weights of 0 layers"):
        attached(TINY, pocket(), MethodState(tensors=fewer, structure=state.structure))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"marked_share": 0.0}, r"reg_lora\.marked_share is 0\.0"),
        ({"marked_share": 1.5}, r"reg_lora\.marked_share is 1\.5"),
        ({"penalty_weight": -1.0}, r"reg_lora\.penalty_weight is -1\.0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)
