"""Put adapters into a model: swap linear layers by name, and prove which ones were swapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import nn

from components.adapters.compute import compute_of
from components.adapters.low_rank import AdaptedLinear, Bank, BankedLinear
from components.adapters.mixing import Mixing

LayerT = TypeVar("LayerT", bound=AdaptedLinear)


def replace_linear(
    model: nn.Module, targets: Mapping[str, nn.Linear], adapted: Callable[[str, nn.Linear], LayerT]
) -> dict[str, LayerT]:
    """Freeze `model` and put `adapted(name, layer)` in the place of each of `targets` (name in `model` -> layer).

    Returns the new layers by the same names. The names in the model's state dict stay as they were.
    """
    assert targets, "no layer to adapt"
    model.requires_grad_(False)
    compute = compute_of(model)
    layers: dict[str, LayerT] = {}
    for name, linear in targets.items():
        assert model.get_submodule(name) is linear, f"{name} does not name the given layer"
        assert not isinstance(linear, AdaptedLinear), f"{name} is adapted already; attach to a fresh backbone"
        layers[name] = adapted(name, linear)
        layers[name].compute = compute
        model.set_submodule(name, layers[name])
    found = {name for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}
    assert found == set(targets), f"adapted {sorted(found)}, wanted {sorted(targets)}"
    return layers


def inject_bank(model: nn.Module, targets: Mapping[str, nn.Linear]) -> Bank:
    """Freeze `model` and replace each of `targets` by a `BankedLinear` without groups.

    The adapted model equals the original until a group is added and put in force.
    """
    mixing = Mixing()
    return Bank(replace_linear(model, targets, lambda _, linear: BankedLinear(linear, mixing)), mixing)
