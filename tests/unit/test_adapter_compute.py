"""Where adapters cast: how often, for how long, and with which gradients; and bfloat16 compute of every kind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from components.adapters.compute import compute_dtype, plus, shared, shared_weights, weight
from components.adapters.dense_increment import DenseIncrement
from components.adapters.dual_router import inject_dual_router
from components.adapters.experts import inject_experts
from components.adapters.fused import FusedPairs
from components.adapters.inject import inject_bank
from components.adapters.low_rank import AdaptedLinear, LowRankPairs
from components.adapters.present import leaving, present
from components.adapters.projected import ProjectedPairs
from components.adapters.projectors import PARTS, ProjectorBank
from components.adapters.separable import inject_separable
from components.core.errors import ConfigError
from components.models.config import BackboneConfig

WIDTH, TOKENS = 24, 7


class Casts(TorchDispatchMode):
    """The shapes of what is copied into another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and result.dtype != args[0].dtype:
            self.shapes.append(tuple(result.shape))
        return result


class Attention(nn.Module):
    """q, k and v read one tensor that was computed inside, as in a decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q", "k", "v"):
            self.add_module(name, nn.Linear(WIDTH, WIDTH))
        self.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        return torch.stack([self.get_submodule(name)(x) for name in ("q", "k", "v")]).sum(dim=0)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}


def adapted(compute: str) -> tuple[Attention, list[nn.Parameter]]:
    torch.manual_seed(0)
    model = Attention()
    bank = inject_bank(model, linears(model))
    bank.add_group("lora", num_pairs=1, rank=4, init="kaiming", seed=0)
    bank.mixing.rest_at("lora", 2.0)
    for layer in bank.layers.values():
        layer.compute = compute  # type: ignore[assignment]
        layer.groups["lora"].up.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    return model, list(bank.parameters().values())


def inputs() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()


def by_hand(model: Attention, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Each layer with a cast of its own."""
    x, outputs = torch.tanh(x), []
    for name in ("q", "k", "v"):
        layer = model.get_submodule(name)
        assert isinstance(layer, AdaptedLinear)
        pairs = layer.groups["lora"]  # type: ignore[index]
        hidden = F.linear(x.to(dtype), pairs.down.to(dtype)) * 2.0
        base = F.linear(x, layer.weight, layer.bias)
        outputs.append((base + F.linear(hidden, pairs.up.to(dtype))).bfloat16())
    return torch.stack(outputs).sum(dim=0)


RUNS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "plain": lambda model, x: model(x),
    "checkpointed": lambda model, x: checkpoint(model, x, use_reentrant=False, determinism_check="none"),
    "checkpointed, reentrant": lambda model, x: checkpoint(model, x, use_reentrant=True),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_shared_casts_change_no_bit_of_outputs_and_trained_gradients(compute: str, run: str) -> None:
    model, parameters = adapted(compute)
    dtype = torch.float32 if compute == "float32" else torch.bfloat16
    x = inputs()
    expected = by_hand(model, x, dtype)
    wanted = torch.autograd.grad(expected.float().square().sum(), [x, *parameters])
    assert all(each.dtype == torch.float32 for each in wanted[1:])
    x = inputs()
    with shared_weights():
        for _ in range(2):  # two micro batches, whose gradients add up
            found = RUNS[run](model, x)
            found.float().square().sum().backward()
    assert torch.equal(found, expected)
    assert x.grad is not None  # of bfloat16 sums, in another order
    assert float((x.grad - 2 * wanted[0]).abs().max()) < 0.02 * float(x.grad.abs().max())
    for each, gradient in zip(parameters, wanted[1:], strict=True):
        assert each.grad is not None
        assert float(gradient.abs().max()) > 0
        assert torch.equal(each.grad, 2 * gradient)


def test_layers_that_read_one_tensor_share_one_cast() -> None:
    model, _ = adapted("float32")
    x = inputs()
    with Casts() as casts:
        model(x)
    down = [shape for shape in casts.shapes if shape == (2, TOKENS, WIDTH)]
    assert len(down) == 1 + 3  # one of the input; each layer's output is cast back


def test_weights_are_cast_once_an_update_and_follow_the_optimizer() -> None:
    model, parameters = adapted("bfloat16")
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    x = inputs()
    for _ in range(2):
        with Casts() as casts, shared_weights():
            for _ in range(3):
                RUNS["checkpointed"](model, x).sum().backward()
        widths = {tuple(each.shape) for each in parameters}
        # to bfloat16 once; gradients come back to float32 after each of the three passes
        assert len([shape for shape in casts.shapes if shape in widths]) == len(parameters) * (1 + 3)
        assert not [shape for shape in casts.shapes if shape[-1] == WIDTH and len(shape) == 3]
        optimizer.step()
        with shared_weights():
            assert torch.equal(model(x), by_hand(model, x, torch.bfloat16))


class Witness:
    """A hook that can be watched."""

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient


def test_a_cast_lives_as_long_as_its_input() -> None:
    source = torch.ones(3, requires_grad=True) * 2.0
    source = source.bfloat16()
    copy = shared(source, torch.float32)
    assert shared(source, torch.float32) is copy
    witness = Witness()
    copy.register_hook(witness)  # held by the copy alone
    gone = weakref.ref(witness)
    del copy, witness
    assert gone() is not None
    gc.disable()
    try:
        del source
        assert gone() is None, "a cast is held by a cycle or elsewhere"
    finally:
        gc.enable()


def test_a_cast_is_made_anew_when_the_input_or_the_mode_changes() -> None:
    x = (torch.ones(3, requires_grad=True) * 2.0).bfloat16()
    with torch.no_grad():
        without = shared(x, torch.float32)
    copy = shared(x, torch.float32)
    assert copy.requires_grad
    assert not without.requires_grad
    with torch.no_grad():
        x.mul_(3.0)
    assert shared(x, torch.float32).tolist() == [6.0] * 3
    with torch.inference_mode():
        constant = torch.ones(2).bfloat16()
    plain = torch.ones(2).bfloat16()
    with torch.inference_mode():
        assert shared(plain, torch.float32).is_inference()
        assert shared(constant, torch.float32) is shared(constant, torch.float32)
    assert not shared(plain, torch.float32).is_inference()


def test_auto_is_exact_beside_float32_weights_and_on_cpus() -> None:
    narrow, wide = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)
    assert compute_dtype("auto", narrow) == torch.float32
    assert compute_dtype("auto", wide) == torch.float32
    assert compute_dtype("bfloat16", narrow) == torch.bfloat16
    assert compute_dtype("float32", narrow) == torch.float32


def test_a_sum_is_written_over_the_increment_only_where_that_is_safe() -> None:
    output, increment = torch.ones(2).bfloat16(), torch.full((2,), 0.5)
    assert plus(output, increment) is increment
    held = torch.full((2,), 0.5)
    assert plus(output, held.view(2)).tolist() == [1.5, 1.5]
    assert held.tolist() == [0.5, 0.5]
    assert plus(torch.ones(2), torch.ones(2).bfloat16()).dtype == torch.float32


# ---- every kind ----------------------------------------------------------------------------------------------------


def bank_of(group: Callable[[LowRankPairs], nn.Module], scale: float | Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH)).to(torch.bfloat16)
    bank = inject_bank(model, linears(model))
    bank.add_group("a", num_pairs=1, rank=4, init="kaiming", seed=0)
    layer = next(iter(bank.layers.values()))
    pairs = layer.groups["a"]
    assert isinstance(pairs, LowRankPairs)
    pairs.up.data.normal_()
    layer.groups["a"] = group(pairs)
    bank.mixing.resting["a"] = scale
    return model


def protected(pairs: LowRankPairs) -> ProjectedPairs:
    projected = ProjectedPairs(pairs)
    basis = torch.linalg.qr(torch.randn(WIDTH, 3)).Q
    projected.protect(basis, torch.linalg.qr(torch.randn(4, 2)).Q)
    projected.down.data.add_(torch.randn(4, WIDTH))
    projected.up.data.add_(torch.randn(WIDTH, 4))
    return projected


def experts() -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH)).to(torch.bfloat16)
    inject_experts(model, linears(model), num_experts=2, rank=4, scale=2.0, dropout=0.5, seed=0)
    return filled(model)


def dual_router() -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH)).to(torch.bfloat16)
    found = inject_dual_router(model, linears(model), num_experts=2, rank=4, scale=2.0, dropout=0.0, beta=0.5, seed=0)
    found.task_gates.rows = torch.tensor([[[0.2, 0.8], [0.9, 0.1]]])
    return filled(model)


def separable() -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH)).to(torch.bfloat16)
    found = inject_separable(model, linears(model), blocks=2, rank=2, scale=2.0, dropout=0.0, embedding=3, seed=0)
    found.inputs.weights, found.inputs.instructions = torch.full((2, TOKENS), 1 / TOKENS), torch.randn(2, 3)
    return filled(model)


def filled(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith((".up", ".down")):
            parameter.data.normal_()
            parameter.requires_grad_(True)
    return model


def projector() -> nn.Module:
    frozen = nn.Sequential()
    for name in sorted(PARTS - {"act"}):
        frozen.add_module(name, nn.Linear(WIDTH, WIDTH))
    frozen.add_module("act", nn.GELU())
    bank = ProjectorBank(frozen.to(torch.bfloat16).requires_grad_(False), "projector")
    bank.add_copy("copy", unit=0.5)
    bank.serving = "copy"
    return bank


KINDS: dict[str, Callable[[], nn.Module]] = {
    "low_rank": lambda: bank_of(lambda pairs: pairs, 2.0),
    "low_rank, per sample": lambda: bank_of(lambda pairs: pairs, torch.rand(2, 1, 4)),
    "fused": lambda: bank_of(lambda pairs: FusedPairs([pairs, pairs]), 0.5),
    "projected": lambda: bank_of(protected, 2.0),
    "dense_increment": lambda: bank_of(lambda _: DenseIncrement(torch.randn(WIDTH, WIDTH)), 1.0),
    "experts": experts,
    "dual_router": dual_router,
    "separable": separable,
    "projectors": projector,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_computes_in_bfloat16_beside_float32_masters(kind: str) -> None:
    """Outputs and gradients are those of float32 compute but for rounding, and nothing as wide as the input is cast."""
    torch.manual_seed(3)
    model = KINDS[kind]().train()
    masters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    results = []
    for compute in ("float32", "bfloat16"):
        for module in model.modules():
            if hasattr(module, "compute"):
                module.compute = compute  # type: ignore[assignment]
        torch.manual_seed(4)  # dropout draws the same places
        x = inputs()
        with Casts() as casts, shared_weights():
            output = model(x)
        loss = output.detach().float() if not masters else output.float().square().mean()
        results.append((output.detach(), *(torch.autograd.grad(loss, list(masters.values())) if masters else ())))
    wide = [shape for shape in casts.shapes if shape == (2, TOKENS, WIDTH)]
    assert not wide
    assert results[1][0].dtype == torch.bfloat16
    for exact, rounded in zip(*results, strict=True):
        assert exact.dtype == rounded.dtype
        scale = float(exact.abs().max())
        assert scale > 0
        assert float((exact - rounded).float().abs().max()) < 0.03 * scale
    assert all(each.dtype == torch.float32 for each in masters.values())


def test_bfloat16_compute_keeps_what_a_projected_pair_protects() -> None:
    """A protected input's product with `down` moves as a rounded weight's does, however far `down` has moved."""
    torch.manual_seed(0)
    pairs = ProjectedPairs(LowRankPairs(nn.Linear(WIDTH, WIDTH), num_pairs=1, rank=4, dropout=0.0))
    pairs.down.data.normal_()
    basis = torch.linalg.qr(torch.randn(WIDTH, 3)).Q
    before = basis.T @ pairs.down.detach().T
    pairs.protect(basis, torch.empty(4, 0))
    pairs.down.data.add_(torch.randn(4, WIDTH), alpha=10.0)
    pairs.up.data.copy_(torch.eye(WIDTH)[:, :4])
    found = pairs(basis.T.bfloat16(), 1.0)[:, :4].detach().float()
    assert float((found - before).abs().max()) < 0.15  # weights of about 10, rounded to 8 bits
    assert float((basis.T @ pairs.down.detach().T - before).abs().max()) > 5.0


def test_bfloat16_compute_beside_float32_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="adapter_compute is bfloat16, but the frozen weights are float32; give"):
        BackboneConfig(adapter_compute="bfloat16")


@pytest.mark.parametrize(
    ("options", "gpu", "words"),
    [
        ({}, False, "float32 adapters over float32 values, float32 products exact"),
        ({}, True, "float32 adapters over float32 values, float32 products in TF32"),
        ({"dtype": "bfloat16"}, True, "bfloat16 adapters over float32 values, float32 products in TF32"),
        ({"dtype": "bfloat16"}, False, "float32 adapters over float32 values, float32 products exact"),
        ({"adapter_compute": "float32"}, True, "float32 adapters over float32 values, float32 products exact"),
        ({"float32_matmul": "highest"}, True, "float32 adapters over float32 values, float32 products exact"),
    ],
)
def test_a_plan_says_the_precision(options: dict[str, str], gpu: bool, words: str) -> None:
    assert BackboneConfig(**options).arithmetic(gpu=gpu) == words  # type: ignore[arg-type]


def test_scopes_of_two_threads_that_end_in_the_order_they_began_leave_nothing() -> None:
    parameter, opened, closed = nn.Parameter(torch.ones(3)), threading.Event(), threading.Event()

    def other() -> None:
        with shared_weights():
            opened.set()
            closed.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    opened.wait(10)
    with shared_weights():
        own = weight(parameter, torch.bfloat16)
        closed.set()
        thread.join(10)
        assert weight(parameter, torch.bfloat16) is own
    with torch.no_grad():
        parameter.mul_(2.0)
    assert weight(parameter, torch.bfloat16).tolist() == [2.0, 2.0, 2.0]


def test_a_thread_without_a_scope_is_in_the_one_that_is_open() -> None:
    """As autograd's, which recomputes under gradient checkpointing."""
    parameter, found = nn.Parameter(torch.ones(3)), list[torch.Tensor]()
    with shared_weights():
        own = weight(parameter, torch.bfloat16)
        thread = threading.Thread(target=lambda: found.append(weight(parameter, torch.bfloat16)))
        thread.start()
        thread.join(10)
    assert found[0] is own


def test_rows_that_leave_in_one_thread_stay_in_another() -> None:
    rows, found = torch.arange(4).unsqueeze(1), list[torch.Tensor]()
    with leaving(4, torch.device("cpu")) as scope:
        scope.keep(torch.tensor([1, 3]))
        thread = threading.Thread(target=lambda: found.append(present(rows)))
        thread.start()
        thread.join(10)
        assert present(rows).flatten().tolist() == [1, 3]
    assert found[0].flatten().tolist() == [0, 1, 2, 3]
