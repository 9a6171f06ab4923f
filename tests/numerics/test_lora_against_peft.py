"""A bank of one pair with a constant scale is peft's LoRA: outputs and gradients, in float32."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from components.adapters.inject import inject_bank


class Block(nn.Module):
    """Something with two target layers and a nonlinearity between them."""

    def __init__(self) -> None:
        super().__init__()
        self.o_proj = nn.Linear(24, 16, bias=False)
        self.down_proj = nn.Linear(16, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(torch.relu(self.o_proj(x)))


@pytest.mark.parametrize(("alpha", "exact"), [(16.0, True), (5.6, False)])
def test_one_pair_equals_peft_lora(alpha: float, exact: bool) -> None:
    """A scale of 2 is exact in binary; any other is applied to h [.., R] here and to the output there."""
    torch.manual_seed(0)
    ours = Block()
    weights = {name: value.clone() for name, value in ours.state_dict().items()}
    bank = inject_bank(ours, {"o_proj": ours.o_proj, "down_proj": ours.down_proj})
    bank.add_group("lora", num_pairs=1, rank=8, init="kaiming", seed=0)
    bank.mixing.rest_at("lora", alpha / 8)

    theirs = Block()
    theirs.load_state_dict(weights)
    theirs = get_peft_model(theirs, LoraConfig(r=8, lora_alpha=alpha, target_modules=["o_proj", "down_proj"]))
    lora = {name: parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
    for layer in ("o_proj", "down_proj"):
        group = bank.layers[layer].groups["lora"]
        with torch.no_grad():
            group.up.normal_()
            for ours_name, theirs_name in (("down", "lora_A"), ("up", "lora_B")):
                parameter = lora[f"base_model.model.{layer}.{theirs_name}.default.weight"]
                parameter.copy_(getattr(group, ours_name))
                pairs.append((getattr(group, ours_name), parameter))

    x = torch.randn(3, 7, 24)
    output, expected = ours(x), theirs(x)
    output.square().sum().backward()
    expected.square().sum().backward()
    compared = [(output, expected)]
    for mine, other in pairs:
        assert mine.grad is not None
        assert other.grad is not None
        compared.append((mine.grad, other.grad))
    for mine, other in compared:
        if exact:
            assert torch.equal(mine, other)
        else:
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-4)


def test_initial_draw_has_pefts_range() -> None:
    """peft draws A from kaiming_uniform(a = sqrt 5) = uniform within 1 / sqrt(d_in), and B = 0."""
    ours = Block()
    bank = inject_bank(ours, {"o_proj": ours.o_proj})
    bank.add_group("lora", num_pairs=1, rank=256, init="kaiming", seed=0)
    group = bank.layers["o_proj"].groups["lora"]
    bound = 24**-0.5
    assert 0.99 * bound < float(group.down.detach().abs().max()) <= bound
    assert float(group.down.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not group.up.any()
