"""KeepLoRA against autograd on trainable copies, numpy's singular values, and outputs that must not move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from small_stream import attached, batch_of, info, learn, pocket, task_loss
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.low_rank import BankedLinear
from components.adapters.projected import leading_directions
from components.adapters.weight_gradients import WeightGradients
from components.core.errors import CheckpointError, ConfigError
from components.data.batch import Batch
from components.methods.base import MethodConfig, MethodState
from components.methods.keep_lora import BASIS, KeepLora, KeepLoraConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import Backbone
from components.training.engine import TorchEngine, mean_over_workers, trainable_parameters
from components.training.optimizer import OptimizerConfig

TINY = KeepLoraConfig(rank=4, alpha=8.0)


def keep_lora(config: KeepLoraConfig = TINY, *, gradient_checkpointing: bool = False) -> tuple[KeepLora, Backbone]:
    backbone = pocket(gradient_checkpointing=gradient_checkpointing)
    method = attached(config, backbone)
    assert isinstance(method, KeepLora)
    return method, backbone


def begin(method: KeepLora, backbone: Backbone, name: str, rows: Sequence[Sequence[int]] = ((0, 1, 2, 3),)) -> None:
    """Begin a task and calibrate on its rows, a batch for each sequence."""
    method.begin_task(backbone, info(name))
    method.calibrate(backbone, info(name), iter([batch_of(name, part) for part in rows]), mean_over_workers)


def learn_rows(method: KeepLora, backbone: Backbone, name: str, rows: Sequence[int], *, updates: int = 8) -> None:
    """A task of few rows, so that its inputs leave directions free: the pocket model has 64 of them per layer."""
    begin(method, backbone, name, [rows])
    engine, batch = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2)), batch_of(name, rows)
    backbone.train()
    for _ in range(updates):
        with method.select(backbone, batch) as selection:
            engine.backward(method.loss(backbone, batch, backbone(batch), selection).total)
        assert method.step(engine)
    method.end_task(engine, info(name), iter([batch]))
    engine.close()
    backbone.eval()


def factor(method: KeepLora, layer: str, index: int, name: str) -> Tensor:
    return method.bank.layers[layer].groups[str(index)].get_parameter(name).detach().clone()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out_gradients(backbone: Backbone, method: KeepLora, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """autograd's gradients of the summed loss with respect to W0 itself, made trainable for a moment."""
    weights = {name: layer.weight for name, layer in method.bank.layers.items()}
    total = torch.zeros(())
    for weight in weights.values():
        weight.requires_grad_(True)
    for batch in batches:
        outputs = backbone(batch)
        total = total + F.cross_entropy(outputs.logits, outputs.targets, reduction="sum")
    found = torch.autograd.grad(total, list(weights.values()))
    for weight in weights.values():
        weight.requires_grad_(False)
    return dict(zip(weights, found, strict=True))


# Gradients of frozen weights.


def test_by_hand() -> None:
    """y = W x with x = (1, 2), (3, 0) and loss = 1 * y_0 of the first token + 5 * y_1 of the second."""
    layer = nn.Linear(2, 2, bias=False).requires_grad_(False)
    gradients = WeightGradients({"layer": layer})
    with gradients.recording():
        y = layer(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]))
    (y[0, 0, 0] + 5 * y[0, 1, 1]).backward()
    assert gradients.pop("layer").tolist() == [[1.0, 2.0], [15.0, 0.0]]


def test_equals_the_gradient_of_a_trainable_copy() -> None:
    first, second = nn.Linear(5, 7), nn.Linear(7, 3)
    copies = [nn.Linear(5, 7), nn.Linear(7, 3)]
    for layer, copy in zip((first, second), copies, strict=True):
        copy.load_state_dict(layer.state_dict())
        layer.requires_grad_(False)
    gradients = WeightGradients({"first": first, "second": second})
    for seed in range(3):
        x = normal(2, 4, 5, seed=seed).float()
        with gradients.recording():
            loss = second(first(x).tanh()).square().sum()
        loss.backward()
        copies[1](copies[0](x).tanh()).square().sum().backward()
    second(first(x))  # outside the scope nothing is watched
    for name, copy in zip(("first", "second"), copies, strict=True):
        assert copy.weight.grad is not None
        torch.testing.assert_close(gradients.pop(name), copy.weight.grad, rtol=1e-5, atol=1e-5)
    assert all(parameter.grad is None for layer in (first, second) for parameter in layer.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_calibration_sees_the_gradient_of_w0(checkpointing: bool) -> None:
    method, backbone = keep_lora(gradient_checkpointing=checkpointing)
    backbone.train(checkpointing)
    begin(method, backbone, "names")
    batches = [batch_of("names", [0, 1]), batch_of("names", [2, 3])]
    found = method._gradients(backbone, batches, branches=0).sums
    expected = written_out_gradients(backbone, method, batches)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    assert method.calibrated == 4
    assert backbone.training == checkpointing
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_calibration_counts_earlier_branches_and_drops_nothing() -> None:
    method, backbone = keep_lora(replace(TINY, dropout=0.5))
    learn(method, backbone, "names")
    method.begin_task(backbone, info("others"))
    with torch.no_grad():  # the new branch must not count
        for layer in method.bank.layers.values():
            layer.groups["1"].get_parameter("up").fill_(1.0)
    backbone.train()
    found = method._gradients(backbone, [batch_of("others")], branches=1).sums
    backbone.eval()
    with method.bank.mixing.using({"0": method.scale}):
        expected = written_out_gradients(backbone, method, [batch_of("others")])
    with method.bank.mixing.using({}):
        bare = written_out_gradients(backbone, method, [batch_of("others")])
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
        assert float((bare[name] - gradient).abs().max()) > 0.01 * float(gradient.abs().max())


# Where a branch starts.


def test_leading_directions_are_numpys_singular_vectors() -> None:
    basis = torch.linalg.qr(normal(9, 3, seed=1)).Q.float()
    gradient = normal(6, 9, seed=2)
    found = leading_directions(basis, gradient.T @ gradient, count=4)
    projected = gradient.numpy() @ (np.eye(9) - basis.numpy().astype(float) @ basis.numpy().T.astype(float))
    expected = np.linalg.svd(projected)[2][:4]
    for direction, row in zip(found.T.numpy(), expected, strict=True):
        assert abs(direction @ row) == pytest.approx(1.0, abs=1e-6)  # up to the sign


@pytest.mark.parametrize(("rank_of_gradient", "held", "expected"), [(2, 3, 2), (9, 7, 2), (9, 9, 0)])
def test_no_direction_is_made_up(rank_of_gradient: int, held: int, expected: int) -> None:
    """A gradient of lower rank, or a basis that is nearly full, has fewer directions than are asked for."""
    basis = torch.linalg.qr(normal(9, held, seed=1)).Q.float()
    gradient = (normal(12, rank_of_gradient, seed=2) @ normal(rank_of_gradient, 9, seed=3)).float().double()
    assert leading_directions(basis, gradient.T @ gradient, count=4).shape == (9, expected)


def test_the_first_basis_holds_the_weights_energy() -> None:
    method, backbone = keep_lora()
    begin(method, backbone, "names")
    for name, layer in method.bank.layers.items():
        basis = method.memory[f"{BASIS}{name}"]
        _, sizes, rows = np.linalg.svd(layer.weight.detach().double().numpy())
        shares = np.cumsum(sizes**2) / np.sum(sizes**2)
        count = int(np.argmax(shares >= 0.6)) + 1
        assert basis.shape == (64, count)
        torch.testing.assert_close(basis @ basis.T, torch.from_numpy(rows[:count].T @ rows[:count]).float())


def test_a_branch_reads_the_gradients_leading_directions_outside_the_basis() -> None:
    method, backbone = keep_lora()
    learn_rows(method, backbone, "names", [1])
    begin(method, backbone, "others", [(0, 1), (2, 3)])
    with method.bank.mixing.using({"0": method.scale}):
        gradients = written_out_gradients(backbone, method, [batch_of("others", rows) for rows in ([0, 1], [2, 3])])
    for name, gradient in gradients.items():
        down, basis = factor(method, name, 1, "down"), method.memory[f"{BASIS}{name}"]
        torch.testing.assert_close(down @ down.T, torch.eye(4), rtol=0, atol=1e-6)
        torch.testing.assert_close(down @ basis, torch.zeros(4, basis.shape[1]), rtol=0, atol=1e-6)
        wide = basis.double().numpy()
        _, sizes, rows = np.linalg.svd(gradient.double().numpy() @ (np.eye(64) - wide @ wide.T))
        assert sizes[3] > 1.01 * sizes[4], "the fourth direction is not told from the fifth"
        expected = torch.from_numpy(rows[:4].T @ rows[:4]).float()
        torch.testing.assert_close(down.T @ down, expected, rtol=0, atol=1e-3)


def test_up_alone_trains_and_down_stays_where_calibration_put_it() -> None:
    method, backbone = keep_lora()
    begin(method, backbone, "names")
    assert {name.rpartition(".")[2] for name in trainable_parameters(backbone)} == {"up"}
    downs = {name: factor(method, name, 0, "down") for name in method.bank.layers}
    method, backbone = keep_lora()
    learn(method, backbone, "names")
    for name, down in downs.items():
        assert torch.equal(factor(method, name, 0, "down"), down)
        assert factor(method, name, 0, "up").any()


# What later tasks leave alone.


def answers(method: KeepLora, backbone: Backbone, batch: Batch) -> Tensor:
    backbone.eval()
    with torch.no_grad(), method.select(backbone, batch):
        return backbone(batch).logits


WHOLE = KeepLoraConfig(rank=16, alpha=32.0, weight_energy=0.0, task_energy=1.0)


def test_a_later_branch_adds_nothing_inside_the_basis() -> None:
    method, backbone = keep_lora(WHOLE)
    learn_rows(method, backbone, "names", [1])
    bases = {name: method.memory[f"{BASIS}{name}"] for name in method.bank.layers}
    learn_rows(method, backbone, "others", [0, 3])
    for name, layer in method.bank.layers.items():
        inside = (bases[name] @ normal(bases[name].shape[1], 6).float()).T.unsqueeze(0)
        outside = normal(1, 6, 64, seed=1).float()
        largest = float(layer.groups["1"](outside, method.scale).detach().abs().max())
        assert largest > 0.1
        assert float(layer.groups["1"](inside, method.scale).detach().abs().max()) < 1e-5 * largest


def test_at_energy_one_old_answers_stay_and_new_ones_are_learned() -> None:
    method, backbone = keep_lora(WHOLE)
    old, new = batch_of("names", [1]), batch_of("others", [0, 3])
    learn_rows(method, backbone, "names", [1])
    learned, fresh = answers(method, backbone, old), answers(method, backbone, new)
    learn_rows(method, backbone, "others", [0, 3])
    assert float((answers(method, backbone, old) - learned).abs().max()) < 1e-4
    assert float((answers(method, backbone, new) - fresh).abs().max()) > 0.3


def test_it_forgets_less_than_sequential_lora() -> None:
    def forgetting(config: MethodConfig) -> tuple[float, float]:
        """How much the first task's loss rose, and how much the second one's fell, while the second was learned."""
        backbone = pocket()
        method = attached(config, backbone)
        learn(method, backbone, "names", updates=12)
        before = task_loss(method, backbone, "names"), task_loss(method, backbone, "others")
        learn(method, backbone, "others", updates=12)
        return task_loss(method, backbone, "names") - before[0], before[1] - task_loss(method, backbone, "others")

    plain, kept = forgetting(SequentialLoraConfig(rank=8, alpha=16.0)), forgetting(KeepLoraConfig(rank=8, alpha=16.0))
    assert kept[1] > 1.0, "the second task was not learned"
    assert kept[0] < 0.5 * plain[0]


@pytest.mark.parametrize("protects", ["inputs", "gradients"])
def test_the_basis_grows_by_what_the_option_says(protects: Literal["inputs", "gradients"]) -> None:
    """Its span then holds 99 % of the learned task's energy in every layer, and keeps what it held."""
    method, backbone = keep_lora(replace(TINY, protects=protects))
    begin(method, backbone, "names")
    start = {name: method.memory[f"{BASIS}{name}"].clone() for name in method.bank.layers}
    method, backbone = keep_lora(replace(TINY, protects=protects))
    learn(method, backbone, "names", batches=2)
    inputs: dict[str, Tensor] = {}
    if protects == "gradients":
        with method.select(backbone, batch_of("names")):
            inputs = written_out_gradients(backbone, method, [batch_of("names", [0, 1]), batch_of("names", [2, 3])])
    else:
        inputs = layer_inputs(method, backbone, batch_of("names"))
    for name, rows in inputs.items():
        basis = method.memory[f"{BASIS}{name}"]
        assert torch.equal(basis[:, : start[name].shape[1]], start[name])
        held = [float((rows @ part).square().sum() / rows.square().sum()) for part in (basis, basis[:, :-1])]
        assert held[0] > 0.99 - 1e-5 > held[1]


def layer_inputs(method: KeepLora, backbone: Backbone, batch: Batch) -> dict[str, Tensor]:
    """What reaches every layer [tokens, d_in], padding left out."""
    found: dict[str, Tensor] = {}

    def keep(name: str, layer: BankedLinear) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = inputs[0][batch.attention_mask.bool()]

        return layer.register_forward_pre_hook(look)

    hooks = [keep(name, layer) for name, layer in method.bank.layers.items()]
    answers(method, backbone, batch)
    for hook in hooks:
        hook.remove()
    return found


def test_after_a_task_as_many_samples_are_looked_at_as_before() -> None:
    method, backbone = keep_lora()
    begin(method, backbone, "names", [[0], [1], [2]])
    rows = (batch_of("names", [row]) for row in range(4))
    method.end_task(TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2)), info("names"), rows)
    assert len(list(rows)) == 1


# Going on, and what is refused.


def test_a_resumed_task_keeps_the_rows_that_up_was_trained_for() -> None:
    method, backbone = keep_lora()
    learn(method, backbone, "names")
    start = method.state_dict(backbone)
    begin(method, backbone, "others")
    in_task = method.task_state()
    other_backbone = pocket()
    other = attached(TINY, other_backbone, start)
    assert isinstance(other, KeepLora)
    begin(other, other_backbone, "others", [[0], [1]])  # stands for another calibration: on another number of workers
    name = next(iter(method.bank.layers))
    assert not torch.equal(factor(other, name, 1, "down"), factor(method, name, 1, "down"))
    other.load_task_state(in_task)
    for name in method.bank.layers:
        assert torch.equal(factor(other, name, 1, "down"), factor(method, name, 1, "down"))
    assert other.task_state().keys() == in_task.keys()


def test_a_layer_without_free_directions_learns_nothing_more() -> None:
    method, backbone = keep_lora()
    learn_rows(method, backbone, "names", [1])
    full = next(iter(method.bank.layers))
    method.memory[f"{BASIS}{full}"] = torch.eye(64)
    learn_rows(method, backbone, "others", [0, 3])
    for name in method.bank.layers:
        assert bool(factor(method, name, 1, "up").any()) == (name != full)


def test_a_run_without_directions_left_is_refused() -> None:
    method, backbone = keep_lora()
    learn(method, backbone, "names")
    for key in method.memory:
        method.memory[key] = torch.eye(64)
    with pytest.raises(ConfigError, match="nothing is left to learn it with"):
        begin(method, backbone, "others")


def test_a_task_without_batches_is_refused() -> None:
    method, backbone = keep_lora()
    with pytest.raises(ConfigError, match="no training batch of task 'names'"):
        begin(method, backbone, "names", [])


def test_memory_survives_a_checkpoint_and_a_damaged_one_is_refused() -> None:
    method, backbone = keep_lora()
    learn(method, backbone, "names")
    state = method.state_dict(backbone)
    restored = attached(TINY, pocket(), state)
    assert isinstance(restored, KeepLora)
    assert restored.memory.keys() == method.memory.keys()
    assert all(torch.equal(restored.memory[name], value) for name, value in method.memory.items())
    fewer = {name: value for name, value in state.tensors.items() if BASIS not in name}
    with pytest.raises(CheckpointError, match="holds 0 bases of protected inputs"):
        attached(TINY, pocket(), MethodState(tensors=fewer, structure=state.structure))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_energy": 1.5}, r"keep_lora\.weight_energy is 1\.5"),
        ({"task_energy": -0.1}, r"keep_lora\.task_energy is -0\.1"),
        ({"sample_share": 0.0}, r"keep_lora\.sample_share is 0\.0"),
        ({"init": "gaussian"}, r"keep_lora\.init is 'gaussian'"),
        ({"rank": 0}, r"keep_lora\.rank is 0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, float | str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)
