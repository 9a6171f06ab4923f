"""Put a bank into a model: swap linear layers by name, and prove which ones were swapped."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from components.adapters.low_rank import Bank, BankedLinear, Mixing


def inject_bank(model: nn.Module, targets: Mapping[str, nn.Linear]) -> Bank:
    """Freeze `model` and replace each of `targets` (name in `model` -> layer) by a `BankedLinear` without groups.

    The names in the model's state dict stay as they were. The adapted model equals the original until a group is
    added and put in force.
    """
    model.requires_grad_(False)
    mixing = Mixing()
    layers: dict[str, BankedLinear] = {}
    for name, linear in targets.items():
        assert model.get_submodule(name) is linear, f"{name} does not name the given layer"
        assert not isinstance(linear, BankedLinear), f"{name} carries a bank already; attach to a fresh backbone"
        parent_name, _, child_name = name.rpartition(".")
        layers[name] = BankedLinear(linear, mixing)
        setattr(model.get_submodule(parent_name), child_name, layers[name])
    adapted = {name for name, module in model.named_modules() if isinstance(module, BankedLinear)}
    assert adapted == set(targets), f"adapted {sorted(adapted)}, wanted {sorted(targets)}"
    return Bank(layers, mixing)
