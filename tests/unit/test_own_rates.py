"""Learning rates of single parameters: AdamW written out, group by group, on the plain engine."""

from __future__ import annotations

import torch
from torch import Tensor

from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig

CONFIG = OptimizerConfig(learning_rate=1e-2, max_grad_norm=0.0, warmup_ratio=0.25)
UPDATES = 6


def adamw(start: Tensor, gradients: list[Tensor], peak: float) -> Tensor:
    """Warm-up and cosine, bias-corrected moments, no decay; float64."""
    value, first, second = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for number, gradient in enumerate(gradients):
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.999 * second + 0.001 * gradient.double() ** 2
        corrected = second / (1 - 0.999 ** (number + 1))
        rate = peak * CONFIG.rate_at(number, UPDATES) / 1e-2
        value = value - rate * first / (1 - 0.9 ** (number + 1)) / (corrected.sqrt() + 1e-8)
    return value


def test_a_parameter_with_its_own_rate_follows_the_same_schedule() -> None:
    model = load_backbone(BackboneConfig(name="pocket"))
    method = SequentialLoraConfig(rank=2).build(seed=0)
    method.attach(model, None)
    for parameter in method.parameters().values():
        parameter.requires_grad_(True)
    names = list(trainable_parameters(model))
    own = {names[0]: 0.3, names[3]: 0.3, names[4]: 1e-4}
    starts = {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}
    engine = TorchEngine(model, CONFIG, rates=own)
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    generator = torch.Generator().manual_seed(0)
    for update in range(UPDATES):
        engine.set_learning_rate(CONFIG.rate_at(update, UPDATES))
        for name, parameter in trainable_parameters(model).items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            kept[name].append(parameter.grad.clone())
        engine.step()
    for name, value in trainable_parameters(model).items():
        expected = adamw(starts[name], kept[name], own.get(name, 1e-2))
        torch.testing.assert_close(value.detach().double(), expected, rtol=1e-4, atol=1e-6)
