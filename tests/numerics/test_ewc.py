"""EWC against written-out loops, a softmax model with known gradients, and numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from small_stream import attached, batch_of, info, learn, pocket, task_loss, train
from torch import nn
from torch.nn import functional as F

from components.adapters.penalties import PenaltySum, QuadraticPenalty
from components.core.errors import CheckpointError, ConfigError
from components.data.batch import IGNORE, Batch
from components.methods.base import Method, MethodState
from components.methods.ewc import PENALTY, Ewc, EwcConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import Backbone, Outputs
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig

TINY = EwcConfig(rank=4)


def ewc(config: EwcConfig = TINY, *, gradient_checkpointing: bool = False) -> tuple[Ewc, Backbone]:
    backbone = pocket(gradient_checkpointing=gradient_checkpointing)
    method = attached(config, backbone)
    assert isinstance(method, Ewc)
    return method, backbone


def written_out_fisher(method: Method, backbone: Backbone, groups: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Rows of the first task, each encoded for itself; squared gradients of the summed log p of a group's answers."""
    backbone.eval()
    parameters = method.parameters()
    for parameter in parameters.values():  # they were frozen when the task ended
        parameter.requires_grad_(True)
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for rows in groups:
        log_p = torch.zeros(())
        for row in rows:
            batch = batch_of("names", [row])
            hidden = backbone.language_model(
                inputs_embeds=backbone.inputs(batch).embeddings, attention_mask=batch.attention_mask
            ).last_hidden_state
            logits = cast(nn.Linear, backbone.model.lm_head)(hidden)[0]
            for position in range(1, batch.labels.shape[1]):
                label = int(batch.labels[0, position])
                if label != IGNORE:
                    log_p = log_p + logits[position - 1, label] - logits[position - 1].logsumexp(dim=0)
        for name, gradient in zip(parameters, torch.autograd.grad(log_p, list(parameters.values())), strict=True):
            total[name] += gradient.pow(2)
    count = sum(len(rows) for rows in groups)
    return {name: value / count for name, value in total.items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(value.max()) > 0
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5 * float(value.max()), msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("batches", [1, 2])
def test_fisher_is_the_mean_of_squared_gradients_of_single_samples(batches: int, checkpointing: bool) -> None:
    method, backbone = ewc(gradient_checkpointing=checkpointing)
    learn(method, backbone, "names", batches=batches)
    assert_same(method.fisher, written_out_fisher(method, backbone, [[0], [1], [2], [3]]))
    assert all(torch.equal(method.anchor[name], value) for name, value in method.parameters().items())


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_the_batch_estimator_squares_sums_of_gradients(batches: int) -> None:
    method, backbone = ewc(replace(TINY, estimator="batch"))
    learn(method, backbone, "names", batches=batches)
    groups = {1: [[0, 1, 2, 3]], 2: [[0, 1], [2, 3]], 4: [[0], [1], [2], [3]]}[batches]
    assert_same(method.fisher, written_out_fisher(method, backbone, groups))


def test_fisher_of_the_first_samples_only() -> None:
    method, backbone = ewc(replace(TINY, fisher_samples=3))
    learn(method, backbone, "names", batches=2)
    assert_same(method.fisher, written_out_fisher(method, backbone, [[0], [1], [2]]))


def test_fisher_is_taken_without_dropout_and_leaves_the_mode_alone() -> None:
    method, backbone = ewc(replace(TINY, dropout=0.5), gradient_checkpointing=True)
    method.begin_task(backbone, info("names"))
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    train(method, engine, "names", updates=4)
    assert backbone.training
    method.end_task(engine, info("names"), iter([batch_of("names")]))
    assert all(module.training for layer in method.bank.layers.values() for module in layer.modules())
    assert_same(method.fisher, written_out_fisher(method, backbone, [[0], [1], [2], [3]]))


class SoftmaxModel(nn.Module):
    """logits = W x with x the one-hot of a token; sample i sees token i and answers with `labels[i, 1]`."""

    config = SimpleNamespace(gradient_checkpointing=False)
    device = torch.device("cpu")

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.classifier = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        with torch.no_grad():
            self.classifier.weight.copy_(weight)

    def target_modules(self, pattern: str) -> dict[str, nn.Linear]:
        return {"classifier": self.classifier}

    def forward(self, batch: Batch) -> Outputs:
        x = F.one_hot(batch.input_ids[:, :1], self.classifier.in_features).float()
        return Outputs(
            logits=self.classifier(x)[:, 0], targets=batch.labels[:, 1], rows=torch.arange(len(batch.input_ids))
        )


def test_fisher_of_a_softmax_classifier_is_its_closed_form() -> None:
    """d log p(y | x) / d up = s (e_y - p) (down x)^T and d / d down = s up^T (e_y - p) x^T, s = alpha / rank."""
    generator = torch.Generator().manual_seed(0)
    model = SoftmaxModel(torch.randn(5, 4, generator=generator))
    method = EwcConfig(rank=2, alpha=3.0).build(seed=0)
    assert isinstance(method, Ewc)
    method.attach(cast(Backbone, model), None)
    down, up = (method.parameters()[f"classifier.groups.lora.{name}"] for name in ("down", "up"))
    with torch.no_grad():
        up.normal_(generator=generator)
    tokens, answers = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([4, 0, 2, 2, 3])
    batch = Batch(
        sample_ids=list("abcde"),
        instructions=["?"] * 5,
        input_ids=tokens[:, None].repeat(1, 2),
        attention_mask=torch.ones(5, 2, dtype=torch.long),
        labels=torch.stack([torch.full((5,), IGNORE), answers], dim=1),
    )
    method.begin_task(cast(Backbone, model), info("names"))
    engine = TorchEngine(cast(Backbone, model), OptimizerConfig(learning_rate=1e-3))
    method.end_task(engine, info("names"), iter([batch]))

    expected_up, expected_down = torch.zeros(5, 2, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    a, b, w = down.detach().double(), up.detach().double(), model.classifier.weight.detach().double()
    for token, answer in zip(tokens.tolist(), answers.tolist(), strict=True):
        x = torch.eye(4, dtype=torch.float64)[token]
        z = w @ x + 1.5 * b @ (a @ x)
        error = torch.eye(5, dtype=torch.float64)[answer] - z.exp() / z.exp().sum()
        expected_up += (1.5 * torch.outer(error, a @ x)) ** 2 / 5
        expected_down += (1.5 * torch.outer(b.T @ error, x)) ** 2 / 5
    torch.testing.assert_close(method.fisher["classifier.groups.lora.up"].double(), expected_up, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        method.fisher["classifier.groups.lora.down"].double(), expected_down, rtol=1e-4, atol=1e-7
    )


def test_penalty_and_gradient_by_hand() -> None:
    """3 * (2 - 1)^2 + 0 * (5 - 0)^2 + 2 * (1 - 3)^2 = 11; gradient 2 w (theta - theta*) = 6, 0, -8."""
    theta, other = nn.Parameter(torch.tensor([2.0, 5.0])), nn.Parameter(torch.tensor([[1.0]]))
    penalty = PenaltySum(
        [
            QuadraticPenalty([theta], [torch.tensor([1.0, 0.0])], [torch.tensor([3.0, 0.0])]),
            QuadraticPenalty([other], [torch.tensor([[3.0]])], [torch.tensor([[2.0]])]),
        ]
    )
    value = penalty()
    assert float(value.detach()) == 11.0
    first, second = torch.autograd.grad(value, [theta, other])
    assert first.tolist() == [6.0, 0.0]
    assert second.tolist() == [[-8.0]]


def test_loss_is_the_task_loss_plus_half_lambda_fisher_drift_squared() -> None:
    method, backbone = ewc(replace(TINY, penalty_weight=7.0))
    learn(method, backbone, "names")
    method.begin_task(backbone, info("others"))
    batch, generator = batch_of("others"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    with method.select(backbone, batch) as selection:
        outputs = backbone(batch)
        loss = method.loss(backbone, batch, outputs, selection)
    parameters = method.parameters()
    drift = {name: value.detach() - method.anchor[name] for name, value in parameters.items()}
    expected = 3.5 * sum(float((method.fisher[name] * drift[name] ** 2).double().sum()) for name in parameters)
    assert float(loss.parts["ewc_penalty"].detach()) == pytest.approx(expected, rel=1e-5)
    assert float((loss.total - outputs.loss).detach()) == pytest.approx(expected, rel=1e-4)
    extra = torch.autograd.grad(loss.parts["ewc_penalty"], list(parameters.values()))
    for (name, _), gradient in zip(parameters.items(), extra, strict=True):
        torch.testing.assert_close(gradient, 7.0 * method.fisher[name] * drift[name], rtol=1e-5, atol=1e-9)


def test_the_first_task_has_no_penalty_and_the_module_is_gone_after_a_task() -> None:
    method, backbone = ewc()
    learn(method, backbone, "names")
    plain = pocket()
    sequential = attached(SequentialLoraConfig(rank=4), plain)
    learn(sequential, plain, "names")
    assert all(torch.equal(method.parameters()[name], value) for name, value in sequential.parameters().items())
    names = set(backbone.state_dict())
    method.begin_task(backbone, info("others"))
    assert any(name.startswith(PENALTY) for name in backbone.state_dict())
    assert trainable_parameters(backbone).keys() == method.parameters().keys()  # each once, under its own name
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    method.end_task(engine, info("others"), iter([batch_of("others")]))
    assert set(backbone.state_dict()) == names


@pytest.mark.parametrize(("weight", "equal"), [(0.0, True), (100.0, False)])
def test_lambda_zero_is_sequential_lora(weight: float, equal: bool) -> None:
    method, backbone = ewc(replace(TINY, penalty_weight=weight))
    plain = pocket()
    sequential = attached(SequentialLoraConfig(rank=4), plain)
    for name in ("names", "others"):
        losses, expected = learn(method, backbone, name), learn(sequential, plain, name)
    assert (losses == expected) == equal
    same = [torch.equal(method.parameters()[name], value) for name, value in sequential.parameters().items()]
    assert all(same) == equal


def test_a_huge_lambda_holds_what_has_fisher_information() -> None:
    """Adam's first step moves every entry by the learning rate; after it the quadratic pulls back."""
    drifts, forgotten = {}, {}
    for weight in (0.0, 1e7):
        method, backbone = ewc(replace(TINY, penalty_weight=weight))
        learn(method, backbone, "names")
        before = {name: value.detach().clone() for name, value in method.parameters().items()}
        fisher = torch.cat([value.flatten() for value in method.fisher.values()])
        learned = task_loss(method, backbone, "names")
        learn(method, backbone, "others", updates=25, rate=2e-3)
        moved = torch.cat([(value - before[name]).flatten() for name, value in method.parameters().items()])
        important = fisher > fisher.quantile(0.5)
        drifts[weight] = float(moved.detach()[important].abs().mean())
        forgotten[weight] = task_loss(method, backbone, "names") - learned
    assert drifts[1e7] < 0.05 * drifts[0.0]
    assert drifts[1e7] < 2e-3  # less than one step
    assert forgotten[1e7] < 0.1 * forgotten[0.0]


def quadratics(config: EwcConfig, tasks: Sequence[str]) -> tuple[Ewc, list[tuple[dict, dict]]]:
    """A method after `tasks`, and every task's own Fisher and optimum, from a method that takes it for the first."""
    method, backbone = ewc(config)
    found = []
    for name in tasks:
        learn(method, backbone, name)
        alone, other = cast(Ewc, config.build(seed=0)), pocket()
        adapter = {key: value for key, value in method.state_dict(backbone).tensors.items() if "ewc" not in key}
        alone.attach(other, MethodState(tensors=adapter, structure={**alone.structure(), "tasks": []}))
        first = replace(info(name), index=0)
        alone.begin_task(other, first)
        alone.end_task(TorchEngine(other, OptimizerConfig(learning_rate=1.0)), first, iter([batch_of(name)]))
        found.append((alone.fisher, alone.anchor))
    return method, found


@pytest.mark.parametrize("decay", [1.0, 0.25])
def test_online_keeps_a_decayed_sum_of_fishers_around_the_latest_values(decay: float) -> None:
    method, found = quadratics(replace(TINY, decay=decay), ["names", "others"])
    for name, value in method.fisher.items():
        torch.testing.assert_close(value, decay * found[0][0][name] + found[1][0][name], rtol=1e-4, atol=1e-7)
        assert torch.equal(method.anchor[name], found[1][1][name])


def test_separate_is_the_sum_of_every_tasks_own_penalty_but_for_a_constant() -> None:
    method, found = quadratics(replace(TINY, accumulate="separate"), ["names", "others"])

    def written_out(theta: dict[str, torch.Tensor]) -> torch.Tensor:
        terms = [(f[name] * (value - a[name]) ** 2).double().sum() for f, a in found for name, value in theta.items()]
        return torch.stack(terms).sum()

    def stored(theta: dict[str, torch.Tensor]) -> torch.Tensor:
        terms = [(method.fisher[name] * (value - method.anchor[name]) ** 2).double() for name, value in theta.items()]
        return torch.stack([term.sum() for term in terms]).sum()

    generator = torch.Generator().manual_seed(0)
    points = [
        {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in method.anchor.items()}
        for _ in range(3)
    ]
    constants = [float(written_out(point) - stored(point)) for point in points]
    assert constants[0] > 0
    assert constants == pytest.approx([constants[0]] * 3, rel=1e-2)
    for function in (written_out, stored):
        assert float(function(points[0])) != pytest.approx(float(function(points[1])), rel=1e-2)
    slopes: list[dict[str, torch.Tensor]] = []
    measures: list[Callable[[dict[str, torch.Tensor]], torch.Tensor]] = [written_out, stored]
    for measure in measures:
        leaves = {name: value.clone().requires_grad_() for name, value in points[0].items()}
        gradients = torch.autograd.grad(measure(leaves), list(leaves.values()))
        slopes.append(dict(zip(leaves, gradients, strict=True)))
    for name, value in slopes[0].items():
        torch.testing.assert_close(slopes[1][name], value, rtol=1e-3, atol=1e-5 * float(value.abs().max()))


def test_memory_survives_a_checkpoint_and_a_damaged_one_is_refused() -> None:
    method, backbone = ewc()
    learn(method, backbone, "names")
    state = method.state_dict(backbone)
    restored = attached(TINY, pocket(), state)
    assert isinstance(restored, Ewc)
    assert all(torch.equal(restored.fisher[name], value) for name, value in method.fisher.items())
    assert all(torch.equal(restored.anchor[name], value) for name, value in method.anchor.items())
    fewer = {name: value for name, value in state.tensors.items() if not name.startswith("ewc.anchor")}
    with pytest.raises(CheckpointError, match=r"0 tensors ewc\.anchor"):
        attached(TINY, pocket(), MethodState(tensors=fewer, structure=state.structure))
    with pytest.raises(CheckpointError, match="rank = 4, this run asks for 2"):
        attached(replace(TINY, rank=2), pocket(), state)


def test_a_task_without_batches_is_refused() -> None:
    method, backbone = ewc()
    method.begin_task(backbone, info("names"))
    with pytest.raises(ConfigError, match="no training batch of task 'names'"):
        method.end_task(TorchEngine(backbone, OptimizerConfig(learning_rate=1.0)), info("names"), iter(()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalty_weight": -1.0}, r"ewc\.penalty_weight is -1\.0"),
        ({"fisher_samples": -1}, r"ewc\.fisher_samples is -1"),
        ({"decay": 1.5}, r"ewc\.decay is 1\.5"),
        ({"accumulate": "separate", "decay": 0.5}, r"ewc\.decay is 0\.5; ewc\.accumulate"),
        ({"rank": 0}, r"ewc\.rank is 0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)
