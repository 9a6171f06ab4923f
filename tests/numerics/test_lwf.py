"""LwF against scipy, a written-out teacher, and cases whose value is known."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from small_stream import attached, batch_of, info, learn, pocket, task_loss, train

from components.core.errors import CheckpointError, ConfigError
from components.methods.base import copy_tensors
from components.methods.lwf import TEACHER, Lwf, LwfConfig, softened_kl
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import Backbone
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig

TINY = LwfConfig(rank=4)


def lwf(config: LwfConfig = TINY, *, gradient_checkpointing: bool = False) -> tuple[Lwf, Backbone]:
    backbone = pocket(gradient_checkpointing=gradient_checkpointing)
    method = attached(config, backbone)
    assert isinstance(method, Lwf)
    return method, backbone


def teacher_parameters(method: Lwf) -> dict[str, torch.Tensor]:
    return {
        name.replace(f".{TEACHER}.", f".{method.GROUP}."): value.detach().clone()
        for name, value in method.parameters().items()
        if f".{TEACHER}." in name
    }


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_kl_equals_scipy(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (3 * torch.randn(7, 11, generator=generator) for _ in range(2))
    p = softmax(teacher.double().numpy() / temperature, axis=1)
    q = softmax(student.double().numpy() / temperature, axis=1)
    expected = temperature**2 * float(np.mean(rel_entr(p, q).sum(axis=1)))
    assert float(softened_kl(teacher, student, temperature)) == pytest.approx(expected, rel=1e-5)


def test_kl_of_two_coins_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2 = 0.130812."""
    teacher, student = torch.tensor([[0.75, 0.25]]).log(), torch.zeros(1, 2)
    assert float(softened_kl(teacher, student, 1.0)) == pytest.approx(0.130812, abs=1e-6)


def test_kl_has_the_gradient_of_the_papers_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(5, 9, generator=generator), torch.randn(5, 9, generator=generator).requires_grad_()
    kl = softened_kl(teacher, student, 2.0)
    cross_entropy = -4 * ((teacher / 2).softmax(dim=1) * (student / 2).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(
        torch.autograd.grad(kl, student)[0], torch.autograd.grad(cross_entropy, student)[0], rtol=1e-5, atol=1e-7
    )


def test_nothing_is_added_where_nothing_drifted() -> None:
    """The first loss of the second task: exactly zero, and no gradient beyond rounding (p - p sum p)."""
    method, backbone = lwf()
    learn(method, backbone, "names")
    method.begin_task(backbone, info("others"))
    batch = batch_of("others")
    with method.select(backbone, batch) as selection:
        outputs = backbone(batch)
        loss = method.loss(backbone, batch, outputs, selection)
        assert float(loss.parts["distillation"].detach()) == 0.0
        assert torch.equal(loss.total, outputs.loss)
        trained = list(trainable_parameters(backbone).values())
        extra = torch.autograd.grad(loss.parts["distillation"], trained, retain_graph=True)
        plain = torch.autograd.grad(outputs.loss, trained)
    for gradient, compared in zip(extra, plain, strict=True):
        assert float(gradient.norm()) < 1e-5 * float(compared.norm())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_teacher_is_the_adapter_of_the_tasks_start(checkpointing: bool) -> None:
    config = replace(TINY, distillation_weight=0.7, temperature=3.0, dropout=0.3)
    method, backbone = lwf(config, gradient_checkpointing=checkpointing)
    learn(method, backbone, "names")
    before = copy_tensors(method.parameters())
    method.begin_task(backbone, info("others"))
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    train(method, engine, "others", updates=4)
    assert all(torch.equal(value, before[name]) for name, value in teacher_parameters(method).items())
    assert all(not torch.equal(method.parameters()[name], value) for name, value in before.items())

    batch = batch_of("others")
    backbone.train()
    with ExitStack() as scope:
        outputs, selection = engine.forward(batch, partial(scope.enter_context, method.select(backbone, batch)))
        loss = method.loss(backbone, batch, outputs, selection)
    other = pocket()
    past = attached(SequentialLoraConfig(rank=4), other)
    with torch.no_grad():
        for name, parameter in past.parameters().items():
            parameter.copy_(before[name])
        z = other(batch).logits.double()  # evaluation mode: the teacher has no dropout
    p = softmax(z.numpy() / 3.0, axis=1)
    q = softmax(outputs.logits.detach().double().numpy() / 3.0, axis=1)
    expected = 9.0 * float(np.mean(rel_entr(p, q).sum(axis=1)))
    assert expected > 0.1
    assert float(loss.parts["distillation"].detach()) == pytest.approx(expected, rel=1e-4)
    assert float((loss.total - outputs.loss).detach()) == pytest.approx(0.7 * expected, rel=1e-4)


def test_gradients_are_the_students_also_under_checkpointing() -> None:
    """Recomputation in the backward pass must see the student's mixing: compared with a graph made by hand."""
    method, backbone = lwf(replace(TINY, distillation_weight=2.0), gradient_checkpointing=True)
    learn(method, backbone, "names")
    method.begin_task(backbone, info("others"))
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    train(method, engine, "others", updates=3)
    batch = batch_of("others")
    with method.select(backbone, batch) as selection:
        outputs = backbone(batch)
        method.loss(backbone, batch, outputs, selection).total.backward()
    found = {name: value.grad for name, value in trainable_parameters(backbone).items()}
    teacher = teacher_parameters(method)

    plain = pocket()
    sequential = attached(SequentialLoraConfig(rank=4), plain)
    sequential.begin_task(plain, info("names"))
    student = copy_tensors({name: value for name, value in method.parameters().items() if name in found})
    with torch.no_grad():
        for name, parameter in sequential.parameters().items():
            parameter.copy_(teacher[name])
        log_p = (plain(batch).logits / 2).log_softmax(dim=1)
        for name, parameter in sequential.parameters().items():
            parameter.copy_(student[name])
    outputs = plain(batch)
    log_q = (outputs.logits / 2).log_softmax(dim=1)
    (outputs.loss + 2.0 * 4.0 * (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()).backward()
    for name, parameter in sequential.parameters().items():
        gradient = found[name]
        assert gradient is not None
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_first_task_is_sequential_lora_with_one_pass() -> None:
    method, backbone = lwf()
    plain = pocket()
    passes: list[int] = []
    backbone.register_forward_hook(lambda *_: passes.append(1))
    assert learn(method, backbone, "names") == learn(attached(SequentialLoraConfig(rank=4), plain), plain, "names")
    assert len(passes) == 6  # one per update
    method.begin_task(backbone, info("others"))
    train(method, TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2)), "others", updates=2)
    assert len(passes) == 6 + 4
    task_loss(method, backbone, "names")  # evaluation asks no teacher
    assert len(passes) == 6 + 4 + 1


@pytest.mark.parametrize(("weight", "equal"), [(0.0, True), (1.0, False)])
def test_lambda_zero_is_sequential_lora(weight: float, equal: bool) -> None:
    method, backbone = lwf(replace(TINY, distillation_weight=weight))
    plain = pocket()
    sequential = attached(SequentialLoraConfig(rank=4), plain)
    for name in ("names", "others"):
        losses, expected = learn(method, backbone, name), learn(sequential, plain, name)
    assert (losses == expected) == equal
    same = [torch.equal(method.parameters()[name], value) for name, value in sequential.parameters().items()]
    assert all(same) == equal


def test_distillation_keeps_more_of_the_old_task() -> None:
    forgotten = {}
    for weight in (0.0, 10.0):
        method, backbone = lwf(replace(TINY, distillation_weight=weight))
        learn(method, backbone, "names", updates=20)
        learned = task_loss(method, backbone, "names")
        learn(method, backbone, "others", updates=20)
        forgotten[weight] = task_loss(method, backbone, "names") - learned
    assert forgotten[10.0] < 0.5 * forgotten[0.0]


def test_the_teacher_is_gone_after_its_task() -> None:
    method, backbone = lwf()
    learn(method, backbone, "names")
    names, state = set(backbone.state_dict()), set(method.state_dict(backbone).tensors)
    learn(method, backbone, "others")
    assert set(backbone.state_dict()) == names
    assert set(method.state_dict(backbone).tensors) == state


def test_a_task_begun_again_from_its_start_or_its_middle_has_the_same_teacher() -> None:
    method, backbone = lwf()
    learn(method, backbone, "names")
    start = method.state_dict(backbone)
    method.begin_task(backbone, info("others"))
    train(method, TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2)), "others", updates=3)
    expected = teacher_parameters(method)
    for state in (start, method.state_dict(backbone)):
        other = pocket()
        again = attached(TINY, other, state)
        assert isinstance(again, Lwf)
        again.begin_task(other, info("others"))
        found = teacher_parameters(again)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert trainable_parameters(other).keys() == expected.keys()  # the student only
    with pytest.raises(CheckpointError, match="rank = 4, this run asks for 2"):
        attached(replace(TINY, rank=2), pocket(), start)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distillation_weight": -0.1}, r"lwf\.distillation_weight is -0\.1"),
        ({"temperature": 0.0}, r"lwf\.temperature is 0\.0"),
        ({"alpha": 0.0}, r"lwf\.alpha is 0\.0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)
