"""A soft prompt per task, and the head that turns the current task's prompt into what samples are compared with.

What a module here owns is read in its own `forward` only, since ZeRO-3 gathers a module's parameters around that. All
parameters are float32.

Shape letters: T tasks, L tokens of one prompt, D hidden, C vision channels, Q text query.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TaskPrompts(nn.Module):
    """One prompt [L, D] per task, in units of `unit`."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def add_task(self, index: int, embeddings: Tensor) -> None:
        """Append the prompt of task `index`, starting at `embeddings` [L, D]."""
        assert f"prompt_{index}" not in self._parameters, f"task {index} has a prompt already"
        self.register_parameter(f"prompt_{index}", nn.Parameter(embeddings / self.unit))

    def set_trainable(self, index: int | None) -> None:
        """Let only the prompt of task `index` train, or none."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name == f"prompt_{index}")

    def forward(self, num_tasks: int) -> Tensor:
        """The first prompts as embeddings [num_tasks, L, D]."""
        return torch.stack([self.get_parameter(f"prompt_{index}") for index in range(num_tasks)]) * self.unit


class PrototypeHead(nn.Module):
    """Two layers per token of a prompt, then the mean: the prompt's place among pictures and among texts."""

    def __init__(self, hidden: int, channels: int, queries: int, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = _drawn(hidden, hidden, generator)
        self.image = _drawn(hidden, channels, generator)
        self.text = _drawn(hidden, queries, generator)

    def forward(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """prompt [L, D] -> image prototype [C] and text prototype [Q]."""
        inner = F.silu(self.hidden(prompt))
        return self.image(inner).mean(dim=0), self.text(inner).mean(dim=0)


def _drawn(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with the framework's usual range, drawn on the CPU from `generator`."""
    linear = nn.Linear(inputs, outputs, device="meta")
    bound = 1.0 / math.sqrt(inputs)
    linear.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator))
    linear.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound, generator=generator))
    return linear
