"""Who multiplies while prompts are answered: the results are those of the definition, by either."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.models.products import FEWEST_ROWS, quick_products, takes_onednn

CPU = torch.device("cpu")


@pytest.mark.parametrize("rows", [1, FEWEST_ROWS, 37])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_float64_up_to_float32_rounding(rows: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 48, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    input = torch.randn(2, rows, 64, generator=generator)
    exact = layer.double()(input.double())
    layer.float()
    with torch.no_grad(), quick_products("onednn", CPU):
        found = layer(input)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def test_what_has_a_gradient_or_another_dtype_is_left_to_torch() -> None:
    layer, input = nn.Linear(64, 48), torch.randn(8, 64)
    expected = layer(input)
    with quick_products("onednn", CPU):
        found = layer(input)
        found.sum().backward()
        with torch.no_grad():
            assert layer.bfloat16()(input.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert layer.weight.grad is not None


def test_the_choice_is_the_processors_and_never_a_gpus() -> None:
    assert not takes_onednn("torch", CPU)
    assert takes_onednn("onednn", CPU) == torch.backends.mkldnn.is_available()
    assert not takes_onednn("onednn", torch.device("cuda"))
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        assert not takes_onednn("auto", CPU)
