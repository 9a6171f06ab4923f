"""AdamW for one task: its steps, and its moments as plain tensors by parameter name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from components.training.optimizer_config import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
OWN_RATE = "own_rate"  # in an optimizer's group: its peak rate, where that is not the run's


class GuardedAdamW(torch.optim.AdamW):
    """torch's AdamW, which leaves every bit as it is in a step whose gradient is not finite.

    `norm` is the gradient's norm over all that trains, set before each step; None: whoever calls has looked already. On
    a CPU its value is at hand. A GPU decides by itself, in torch's fused kernel, and the host does not wait for it.
    """

    norm: Tensor | None = None

    @property
    def is_fused(self) -> bool:
        """Whether the decision is the GPU's."""
        return bool(self.defaults["fused"])

    def step(self, closure: Any = None) -> Any:
        if self.norm is None:
            return super().step(closure)
        if self.is_fused:
            self.found_inf = (~torch.isfinite(self.norm)).float()  # read by torch's own step
        elif not bool(torch.isfinite(self.norm)):
            return None
        return super().step(closure)


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    config: OptimizerConfig,
    rates: Mapping[str, float],
    *,
    fused: bool = False,
) -> GuardedAdamW:
    """AdamW with the task's hyper-parameters. `rates`, by parameter name, are peak rates of their own: a group for
    each, which follows the same schedule. `fused`: see `GuardedAdamW`.
    """
    groups: dict[float | None, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(rates.get(name), []).append(parameter)
    return GuardedAdamW(
        [
            {"params": members} if own is None else {"params": members, "lr": own, OWN_RATE: own}
            for own, members in groups.items()
        ],
        lr=config.rate_at(0, 1),
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=fused or None,
    )


def set_learning_rate(groups: Iterable[dict[str, Any]], rate: float, config: OptimizerConfig) -> None:
    """The run's rate where a group has none of its own; otherwise the same share of that one's peak."""
    for group in groups:
        own = group.get(OWN_RATE)
        if own is not None:
            assert config.learning_rate is not None
            group["lr"] = own * (rate / config.learning_rate)
        else:
            group["lr"] = rate


def step_count(optimizer: torch.optim.Optimizer) -> Tensor:
    counts = [entry["step"] for entry in optimizer.state.values() if "step" in entry]
    return counts[0].detach().clone().cpu() if counts else torch.tensor(0.0)


def plain_moments(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    state = {"step": step_count(optimizer)}
    for name, parameter in parameters.items():
        entry = optimizer.state.get(parameter)
        for moment in MOMENTS:
            value = entry[moment] if entry else torch.zeros_like(parameter)
            state[f"{name}.{moment}"] = value.detach().clone().cpu()
    return state


def load_plain_moments(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], state: dict[str, Tensor]
) -> None:
    for name, parameter in parameters.items():
        counted_at = parameter.device if optimizer.defaults["fused"] else state["step"].device
        optimizer.state[parameter] = {
            "step": state["step"].to(counted_at, copy=True),
            **{moment: state[f"{name}.{moment}"].to(parameter.device).clone() for moment in MOMENTS},
        }
