"""The projector that trains along with sequential LoRA, against one trained by hand on the plain model."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from small_stream import attached, batch_of, learn, pocket
from torch import Tensor, nn

from components.adapters.projectors import ProjectorBank, for_pictures, inject_projectors
from components.core.errors import ConfigError
from components.methods.base import MethodState, copy_tensors
from components.methods.ewc import EwcConfig
from components.methods.individual import IndividualConfig
from components.methods.joint import JointConfig
from components.methods.lwf import LwfConfig
from components.methods.o_lora import OLoraConfig
from components.methods.replay import ReplayConfig
from components.methods.sequential_lora import SequentialLora, SequentialLoraConfig
from components.models.backbone import Backbone

CONFIG = SequentialLoraConfig(rank=4, train_projector=True)
COPY = "model.model.multi_modal_projector.copies.lora."


def by_hand(rate: float, names: list[str], updates: int) -> dict[str, Tensor]:
    """The projector's tensors after plain AdamW on the unwrapped model, its rate `rate` times the adapter's."""
    backbone = pocket()
    lora = attached(SequentialLoraConfig(rank=4), backbone)
    projector = deepcopy(backbone.projector).requires_grad_(True)
    backbone.model.model.multi_modal_projector = projector
    for parameter in lora.parameters().values():
        parameter.requires_grad_(True)
    for name in names:
        groups = [
            {"params": list(lora.parameters().values()), "lr": 1e-2},
            {"params": list(projector.parameters()), "lr": 1e-2 * rate},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        for _ in range(updates):
            optimizer.zero_grad()
            backbone(batch_of(name)).loss.backward()
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
            optimizer.step()
    return {name: tensor.detach() for name, tensor in projector.state_dict().items()}


@pytest.mark.parametrize("rate", [1.0, 0.125])
def test_it_learns_what_a_projector_trained_by_hand_learns(rate: float) -> None:
    expected = by_hand(rate, ["names", "others"], updates=3)
    backbone = pocket()
    method = attached(replace(CONFIG, projector_rate=rate), backbone)
    for name in ("names", "others"):
        learn(method, backbone, name, updates=3)
    start = pocket().projector.state_dict()
    for name, tensor in expected.items():
        moved = tensor - start[name]
        found = method.parameters()[COPY + name].detach() * rate - start[name]
        assert float(moved.abs().max()) > 1e-3
        # AdamW makes full steps of entries with next to no gradient, so rounding shows there; and units change the
        # projector's share of the norm that is clipped: hence the distance of whole tensors
        assert float((found - moved).norm()) < (0.002 if rate == 1.0 else 0.05) * float(moved.norm())


def test_switched_off_the_model_is_todays() -> None:
    backbone, plain = pocket(), pocket()
    method = attached(SequentialLoraConfig(rank=4), backbone)
    assert type(backbone.projector) is type(plain.projector)
    assert not any("projector" in name for name in method.parameters())


def test_the_backbones_own_projector_keeps_its_bits_and_its_names() -> None:
    backbone, original = pocket(), pocket().state_dict()
    method = attached(CONFIG, backbone)
    learn(method, backbone, "names")
    trained = backbone.state_dict()
    assert set(trained) == set(original) | set(method.parameters())
    assert all(torch.equal(trained[name], tensor) for name, tensor in original.items())
    copy = method.parameters()
    for name in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"):
        frozen = original[f"model.model.multi_modal_projector.{name}"]
        assert not torch.equal(copy[COPY + name] * CONFIG.projector_rate, frozen)
    assert backbone.picture_width == pocket().picture_width
    backbone.train()
    assert not backbone.projector.training


def test_the_copy_starts_with_the_projectors_bits_and_is_carried() -> None:
    backbone = pocket()
    batch = batch_of("names")
    with torch.no_grad():
        expected = backbone(batch).logits
        method = attached(CONFIG, backbone)
        assert torch.equal(backbone(batch).logits, expected)
    learn(method, backbone, "names")
    after = copy_tensors(method.parameters())
    other = pocket()
    again = attached(CONFIG, other, MethodState(tensors=after, structure=method.structure()))
    with torch.no_grad():
        assert torch.equal(other(batch).logits, backbone(batch).logits)
    learn(again, other, "others", updates=1)
    assert not torch.equal(again.parameters()[COPY + "linear_2.bias"], after[COPY + "linear_2.bias"])


def test_a_batch_without_pictures_gives_the_copy_zero_gradients() -> None:
    """Not missing ones: under ZeRO a worker whose rows have no picture must take part in the reduction."""
    backbone, plain = pocket(), pocket()
    batch = batch_of("names", (1, 3))
    method, lora = attached(CONFIG, backbone), attached(SequentialLoraConfig(rank=4), plain)
    for each in (method, lora):
        for parameter in each.parameters().values():
            parameter.requires_grad_(True)
    outputs = backbone(batch)
    assert torch.equal(outputs.logits, plain(batch).logits)
    outputs.loss.backward()
    copies = {name: value.grad for name, value in method.parameters().items() if name.startswith(COPY)}
    assert len(copies) == 4
    assert all(gradient is not None and not gradient.any() for gradient in copies.values())


def bank_of_two() -> tuple[Backbone, ProjectorBank]:
    backbone = pocket()
    bank = inject_projectors(backbone, backbone.projector_name)
    for shift, name in ((0.5, "a"), (-1.0, "b")):
        bank.add_copy(name)
        with torch.no_grad():
            bank.copy_parameters(name)[f"model.model.multi_modal_projector.copies.{name}.linear_2.bias"].add_(shift)
    return backbone, bank


def test_every_picture_gets_its_own_projector() -> None:
    _, bank = bank_of_two()
    plain = pocket().projector
    features = torch.randn(5, 3, pocket().picture_width, generator=torch.Generator().manual_seed(3))
    serving = ["b", None, "a", "a", "b"]
    with torch.no_grad(), bank.using(serving):
        found = bank(features)
    shifts = {"a": 0.5, "b": -1.0, None: 0.0}
    for index, name in enumerate(serving):  # a shifted bias shifts the output
        expected = plain(features[index]) + shifts[name]
        torch.testing.assert_close(found[index], expected, rtol=0.0, atol=1e-5)


def test_rows_without_a_picture_are_passed_over_and_scopes_are_undone() -> None:
    backbone, bank = bank_of_two()
    batch = batch_of("names")  # rows 0 and 2 have pictures
    serving = for_pictures(["a", "b", None, "b"], [*map(len, batch.pictures)])
    assert serving == ["a", None]
    with pytest.raises(KeyboardInterrupt), bank.using(serving):
        raise KeyboardInterrupt
    assert bank.serving is None
    with bank.using(["a"]), pytest.raises(AssertionError, match="1 projectors for 2 pictures"):
        backbone(batch)


def test_a_projector_of_another_make_is_refused() -> None:
    backbone = pocket()
    backbone.model.model.multi_modal_projector = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ConfigError, match="is a Sequential of 0"):
        inject_projectors(backbone, backbone.projector_name)


@pytest.mark.parametrize("kind", [EwcConfig, LwfConfig, OLoraConfig, IndividualConfig])
def test_methods_that_look_after_an_adapter_only_refuse_the_switch(kind: type[SequentialLoraConfig]) -> None:
    with pytest.raises(ConfigError, match=f"{kind.name}.train_projector is on"):
        kind(train_projector=True)


@pytest.mark.parametrize("kind", [JointConfig, ReplayConfig])
def test_methods_that_differ_in_their_rows_only_take_it(kind: type[SequentialLoraConfig]) -> None:
    method = attached(kind(rank=4, train_projector=True), pocket())
    assert isinstance(method, SequentialLora)
    assert sum(name.startswith(COPY) for name in method.parameters()) == 4
    with pytest.raises(ConfigError, match="projector_rate is 0"):
        kind(train_projector=True, projector_rate=0.0)
