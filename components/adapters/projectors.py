"""Trainable copies of the multimodal projector, beside the frozen one, and which of them serves which picture.

The projector is called once per batch, with the features of the N rows that have a picture, so copies are chosen per
picture. ZeRO-3 gathers a module's parameters around that module's forward: a copy's weights are read nowhere else.

Shape letters: B batch, N pictures, V visual tokens, C vision channels, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.compute import Compute, compute_dtype, compute_of, shared, weight
from components.adapters.present import present_pictures
from components.core.errors import ConfigError

PARTS = {"linear_1", "act", "linear_2"}

Serving = str | None | Sequence[str | None]  # one copy for all pictures, or one per picture; None: the frozen projector


class UnitLinear(nn.Linear):
    """A float32 copy of a linear layer whose numbers count in units of `unit`.

    Adam moves every number equally far, so `unit` is this layer's learning rate relative to the others'. A power of two
    starts the copy with the original's bits.
    """

    def __init__(self, linear: nn.Linear, unit: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.unit = unit
        self.weight = nn.Parameter(linear.weight.detach().float() / unit)
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().float() / unit)

    def forward(self, input: Tensor) -> Tensor:  # the base class names its argument so
        bias = None if self.bias is None else weight(self.bias, input.dtype)
        return F.linear(input, weight(self.weight, input.dtype), bias) * self.unit


class ProjectorCopy(nn.Module):
    """A two-layer projector with its own float32 numbers, equal to the frozen one at first."""

    def __init__(self, bank: ProjectorBank, unit: float) -> None:
        super().__init__()
        self.linear_1 = UnitLinear(bank.linear_1, unit)
        self.act = bank.act
        self.linear_2 = UnitLinear(bank.linear_2, unit)
        self.compute: Compute = bank.compute

    def tensors(self) -> dict[str, Tensor]:
        """What its layers multiply with and add, by the original's names."""
        layers = {"linear_1": self.linear_1, "linear_2": self.linear_2}
        return {
            f"{name}.{key}": value.detach() * layer.unit
            for name, layer in layers.items()
            for key, value in layer.named_parameters()
        }

    def forward(self, features: Tensor) -> Tensor:
        """features [N, V, C] -> [N, V, D] in the same dtype."""
        x = shared(features, compute_dtype(self.compute, features))
        return self.linear_2(self.act(self.linear_1(x))).to(features.dtype)


class ProjectorBank(nn.Module):
    """Takes the frozen projector's place: its layers under their names, and named copies that train.

    `serving` is what serves now: None is the frozen projector; a copy is set permanently or within `using`.
    """

    def __init__(self, projector: nn.Module, name: str, compute: Compute = "float32") -> None:
        """`name` is the projector's in the model."""
        super().__init__()
        self.name = name
        self.compute: Compute = compute
        found = {name for name, _ in projector.named_children()}
        if found != PARTS or any(True for _ in projector.parameters(recurse=False)):
            raise ConfigError(
                f"the backbone's projector is a {type(projector).__name__} of {', '.join(sorted(found)) or 'nothing'}; "
                "only LLaVA-1.5's two linear layers with an activation between them can be trained."
            )
        linear_1, act, linear_2 = (projector.get_submodule(name) for name in ("linear_1", "act", "linear_2"))
        assert isinstance(linear_1, nn.Linear)
        assert isinstance(linear_2, nn.Linear)
        self.linear_1, self.act, self.linear_2 = linear_1, act, linear_2
        self.copies = nn.ModuleDict()
        self.serving: Serving = None
        self.counts: Sequence[int] = ()

    def add_copy(self, name: str, *, unit: float = 1.0) -> None:
        """Append a trainable copy of the frozen projector; `unit`: see `UnitLinear`."""
        assert name not in self.copies, f"there is a projector {name!r} already"
        self.copies[name] = ProjectorCopy(self, unit).train(self.training)

    @contextmanager
    def using(self, serving: Serving, counts: Sequence[int] = ()) -> Iterator[None]:
        """Choose what serves: one copy, or one per picture; None is the frozen projector. Undone on exit.

        `counts`: how many pictures each row has, where there is one copy per picture and rows may be read in parts.
        """
        before = self.serving, self.counts
        self.serving, self.counts = serving, counts
        try:
            yield
        finally:
            self.serving, self.counts = before

    def set_trainable(self, name: str, trainable: bool) -> None:
        """Let a copy train, or freeze it."""
        self.copies[name].requires_grad_(trainable)

    def copy_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """A copy's parameters under the names they have in the model's state dict."""
        return {f"{self.name}.copies.{name}.{key}": value for key, value in self.copies[name].named_parameters()}

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """Every copy's parameters under the names they have in the model's state dict."""
        return {key: value for name in self.copies for key, value in self.copy_parameters(name).items()}

    def forward(self, image_features: Tensor) -> Tensor:  # the replaced class names its argument so
        """features [N, V, C] -> [N, V, D]."""
        serving = self.serving
        if serving is None or isinstance(serving, str):
            return self._project(serving, image_features)
        serving = present_pictures(serving, self.counts)
        assert len(serving) == len(image_features), f"{len(serving)} projectors for {len(image_features)} pictures"
        names = list(dict.fromkeys(serving))
        if len(names) <= 1:
            return self._project(names[0] if names else None, image_features)
        rows = [torch.tensor([place for place, who in enumerate(serving) if who == name]) for name in names]
        parts = [
            self._project(name, image_features[row.to(image_features.device)])
            for name, row in zip(names, rows, strict=True)
        ]
        order = torch.cat(rows).argsort().to(image_features.device)
        return torch.cat(parts)[order]

    def served(self) -> dict[str, Tensor]:
        """The tensors of the copy that serves, under the frozen projector's names; {} if it serves itself.

        Raises `ConfigError` where pictures are served by different copies.
        """
        serving = [self.serving] if self.serving is None or isinstance(self.serving, str) else self.serving
        names = [*dict.fromkeys(serving)]
        if len(names) > 1:
            raise ConfigError("the method chooses a projector by picture, not by group; export a bundle.")
        if not names or names[0] is None:
            return {}
        copy = self.copies[names[0]]
        assert isinstance(copy, ProjectorCopy)
        return copy.tensors()

    def _project(self, name: str | None, features: Tensor) -> Tensor:
        if name is None:
            return self.linear_2(self.act(self.linear_1(features)))
        return self.copies[name](features)


def inject_projectors(model: nn.Module, name: str) -> ProjectorBank:
    """Put a bank in the place of the backbone's projector, which is called `name`.

    The names in the model's state dict stay as they were, and the model computes what it computed until a copy serves.
    """
    projector = model.get_submodule(name)
    assert not isinstance(projector, ProjectorBank), "the projector has copies already; attach to a fresh backbone"
    bank = ProjectorBank(projector, name, compute_of(model)).train(projector.training)
    model.set_submodule(name, bank)
    return bank


def for_pictures(serving: Sequence[str | None], counts: Sequence[int]) -> list[str | None]:
    """Names per row [B] and each row's number of pictures [B] -> names per picture [N], in the batch's order."""
    return [name for name, count in zip(serving, counts, strict=True) for _ in range(count)]
