"""Moving averages of a task's tensors whose weight follows the gradients: LCIA's balance between old and new.

Everything is per tensor. theta is the live tensor after a step, theta* its average, g the gradient of that step, |.| an
L1 norm. Plain torch on the tensors' own device; no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from components.core.errors import CheckpointError
from components.methods.common.balance_options import Balance

STATISTICS = ("ema_fallback", "ema_old_p10", "ema_old_p50", "ema_old_p90")
QUANTILES = (0.1, 0.5, 0.9)


class BalancedAverage:
    """theta* of every tensor of one task, in float32, and what the next step needs to go on."""

    def __init__(self, balance: Balance, tensors: Mapping[str, Tensor]) -> None:
        """`tensors` are the values at the task's start."""
        self.balance = balance
        self.device = next(iter(tensors.values())).device
        self.average = _copies(tensors) if balance.start == "task_start" else {}
        self.before = _copies(tensors) if balance.needs_previous else {}
        self.gradients: dict[str, Tensor] = {}
        self.levels = torch.tensor(QUANTILES, dtype=torch.float64, device=self.device)
        self.latest = torch.zeros(len(STATISTICS), dtype=torch.float64, device=self.device)
        self.totals = torch.zeros_like(self.latest)  # sums over `steps`
        # of the old weights, over tensors and steps: sum of their means, least, most
        self.weights = torch.tensor([0.0, torch.inf, -torch.inf], dtype=torch.float64, device=self.device)
        self.steps = 0

    def update(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Move the averages after one optimizer step.

        `tensors` are theta; `gradients` are g (empty for rules that need none) and are kept until the next step, so the
        caller must not change them.
        """
        if not self.average:
            self.average = _copies(tensors)
        else:
            olds, fallen = [], []
            for name, tensor in tensors.items():
                old, fell_back = self._old_weight(name, tensor, gradients)
                self.average[name].lerp_(tensor.float(), (1.0 - old).float())
                olds.append(old)
                fallen.append(fell_back)
            self._count(torch.stack(olds), torch.stack(fallen))
        self.gradients.update(gradients)
        self.before = _copies(tensors) if self.balance.needs_previous else {}

    def _old_weight(self, name: str, tensor: Tensor, gradients: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The weight of the old average (float64 scalar), and whether it is the fallback."""
        balance = self.balance
        fixed = 1.0 if balance.rule == "frozen" else balance.constant_weight
        constant = torch.full((), fixed, dtype=torch.float64, device=tensor.device)
        if not balance.adaptive:
            return constant, torch.zeros_like(constant, dtype=torch.bool)
        gradient, gradient_before = gradients.get(name), self.gradients.get(name)
        if gradient is None or gradient_before is None:  # the task's first step: no difference to take
            return constant, torch.ones_like(constant, dtype=torch.bool)
        value = balance.coefficient(
            gradient=balance.measure(gradient),
            change=balance.measure(gradient - gradient_before),
            distance=balance.measure(tensor - self.average[name]),
            step=balance.measure(tensor - self.before[name]) if balance.needs_previous else None,
        )
        inside = (value > 0) & (value < 1)  # also False for the nan and inf of a zero distance or change
        return torch.where(inside, 1.0 - value if balance.rule == "official_code" else value, constant), ~inside

    def _count(self, olds: Tensor, fallen: Tensor) -> None:
        self.latest = torch.cat([fallen.double().mean().unsqueeze(0), olds.quantile(self.levels)])
        self.totals = self.totals + self.latest
        total, least, most = self.weights.unbind()
        self.weights = torch.stack([total + olds.mean(), least.minimum(olds.min()), most.maximum(olds.max())])
        self.steps += 1

    def statistics(self) -> dict[str, Tensor]:
        """Share of fallbacks and quantiles of the old weights over the tensors, of the latest step."""
        return dict(zip(STATISTICS, self.latest.float().unbind(), strict=True)) if self.steps else {}

    def means(self) -> dict[str, float]:
        """The same four numbers, averaged over the task's steps."""
        totals = zip(STATISTICS, self.totals.tolist(), strict=True)
        return {name: total / self.steps for name, total in totals} if self.steps else {}

    def summary(self) -> dict[str, float]:
        """Of the whole task: the steps that averaged, `means`, and the old weights' mean, least and most."""
        total, least, most = self.weights.tolist()
        found = {"ema_steps": float(self.steps)}
        if not self.steps:
            return found
        weights = {"ema_old_mean": total / self.steps, "ema_old_min": least, "ema_old_max": most}
        return found | self.means() | weights

    def state(self) -> dict[str, Tensor]:
        """All of it as plain tensors, for a checkpoint inside the task."""
        parts = {"average": self.average, "gradient": self.gradients, "before": self.before}
        flat = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        counted = {"latest": self.latest, "totals": self.totals, "weights": self.weights}
        return {**flat, **counted, "steps": torch.tensor(self.steps)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        found: dict[str, dict[str, Tensor]] = {"average": {}, "gradient": {}, "before": {}}
        for key, value in state.items():
            part, _, name = key.partition(".")
            if name:
                found[part][name] = value.to(self.device, copy=True)
        whole = {"latest", "totals", "weights", "steps"} <= state.keys()
        begun = whole and (self.balance.start == "task_start" or int(state["steps"]) > 0)
        if not whole or (begun and not found["average"]):
            raise CheckpointError("the mid-task checkpoint has no moving averages; start a new run.")
        self.average, self.gradients, self.before = found["average"], found["gradient"], found["before"]
        self.latest, self.totals, self.weights = (
            state[name].to(self.device) for name in ("latest", "totals", "weights")
        )
        self.steps = int(state["steps"])


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in tensors.items()}
