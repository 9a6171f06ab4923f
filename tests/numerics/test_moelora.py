"""MoELoRA against a loop over experts, against plain LoRA, and against cases worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.experts import ExpertLinear, GateRecord, bernoulli_places
from components.core.errors import ConfigError
from components.data.batch import IGNORE, Batch
from components.methods.base import Loss, Method, TaskInfo
from components.methods.moelora import MoeLora, MoeLoraConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig

D_IN, D_OUT, NUM_EXPERTS, RANK, SCALE = 24, 16, 4, 8, 1.75
FACTORS = ("router", "down", "up")


def expert_layer(dropout: float = 0.0, *, dtype: torch.dtype = torch.float32) -> ExpertLinear:
    """A layer whose increment is as large as its base output, in training mode."""
    torch.manual_seed(0)
    layer = ExpertLinear(
        nn.Linear(D_IN, D_OUT).to(dtype),
        num_experts=NUM_EXPERTS,
        rank=RANK,
        scale=SCALE,
        dropout=dropout,
        record=GateRecord(),
    )
    layer.weight.requires_grad_(False)
    with torch.no_grad():
        for factor in FACTORS:
            layer.get_parameter(factor).normal_(0.0, 0.5)
    return layer.train()


def looped(layer: ExpertLinear, x: Tensor, kept: Tensor, probability: float) -> Tensor:
    """The paper's sum with a loop over experts; kept [N, B, T, d_in] is 1 where an expert sees the input, else 0."""
    logits = x @ layer.router.T
    gates = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    output = x @ layer.weight.T.float() + layer.bias.float()
    size = RANK // NUM_EXPERTS
    for expert in range(NUM_EXPERTS):
        rows = slice(expert * size, (expert + 1) * size)
        seen = x * kept[expert] / (1 - probability)
        output = output + SCALE * gates[..., expert, None] * (seen @ layer.down[rows].T @ layer.up[:, rows].T)
    return output


def gradients(layer: ExpertLinear, x: Tensor, output: Tensor) -> dict[str, Tensor]:
    """Of x and all factors, for a loss whose gradient differs in every output."""
    wanted = {"x": x, **{factor: layer.get_parameter(factor) for factor in FACTORS}}
    return dict(zip(wanted, torch.autograd.grad(output.square().sum(), list(wanted.values())), strict=True))


def assert_equal_to_the_loop(layer: ExpertLinear, x: Tensor, output: Tensor, kept: Tensor, probability: float) -> None:
    expected = looped(layer, x, kept, probability)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    found, wanted = gradients(layer, x, output), gradients(layer, x, expected)
    for name, value in wanted.items():
        assert float(value.abs().max()) > 0.1, name
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_two_flat_products_equal_a_loop_over_experts() -> None:
    layer = expert_layer()
    x = torch.randn(3, 7, D_IN, requires_grad=True)
    assert_equal_to_the_loop(layer, x, layer(x), torch.ones(NUM_EXPERTS, *x.shape), 0.0)


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_each_expert_drops_its_own_inputs_and_the_router_drops_none(probability: float) -> None:
    """The same seed gives the same places here and inside the layer; all else is the loop's."""
    layer = expert_layer(probability)
    x = torch.randn(3, 7, D_IN, requires_grad=True)
    kept = torch.ones(NUM_EXPERTS, *x.shape)
    torch.manual_seed(7)
    places = bernoulli_places(kept.numel(), probability, x.device)
    kept.view(-1)[places[places < kept.numel()]] = 0.0
    assert not any(torch.equal(kept[0], other) for other in kept[1:])
    torch.manual_seed(7)
    assert_equal_to_the_loop(layer, x, layer(x), kept, probability)


def test_dropout_acts_in_training_only() -> None:
    layer = expert_layer(0.5)
    x = torch.randn(3, 7, D_IN)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer(x), looped(layer, x, torch.ones(NUM_EXPERTS, *x.shape), 0.0))


def test_dropout_reaches_the_factors_when_the_input_needs_no_gradient() -> None:
    layer = expert_layer(0.5)
    layer(torch.randn(2, 3, D_IN)).square().sum().backward()
    for factor in FACTORS:
        gradient = layer.get_parameter(factor).grad
        assert gradient is not None
        assert bool(gradient.any())


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.95])
def test_dropped_places_are_independent_draws(probability: float) -> None:
    """Counts of single places and of neighbouring pairs against the binomial's five standard deviations."""
    torch.manual_seed(0)
    total, draws = 40, 4000
    hit = torch.zeros(draws, total)
    for row in hit:
        places = bernoulli_places(total, probability, torch.device("cpu"))
        row[places[places < total]] = 1.0

    def spread(chance: float, trials: int) -> float:
        return 5 * math.sqrt(chance * (1 - chance) / trials)

    single, pair = hit.mean(dim=0), (hit[:, 1:] * hit[:, :-1]).mean(dim=0)
    assert float((single - probability).abs().max()) < spread(probability, draws)
    assert float((pair - probability**2).abs().max()) < spread(probability**2, draws)
    assert float(single.mean()) == pytest.approx(probability, abs=spread(probability, draws * total))


def test_a_case_worked_by_hand() -> None:
    """Gates 3/4 and 1/4, experts 2 -> 1 and 4 -> 10, alpha / rank = 2: 5 + 2 (3/4 * 2 * 1 + 1/4 * 4 * 10) = 28."""
    layer = ExpertLinear(
        nn.Linear(2, 1, bias=False), num_experts=2, rank=2, scale=2.0, dropout=0.0, record=GateRecord()
    )
    values = {
        "weight": [[5.0, 7.0]],
        "router": [[math.log(3.0), 0.0], [0.0, 0.0]],
        "down": [[2.0, 0.0], [4.0, 0.0]],
        "up": [[1.0, 10.0]],
    }
    layer.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    assert layer(torch.tensor([[[1.0, 0.0]]])).item() == pytest.approx(28.0, rel=1e-6)


def test_factors_stay_float32_on_a_bfloat16_base() -> None:
    layer = expert_layer(dtype=torch.bfloat16)
    assert {layer.get_parameter(factor).dtype for factor in FACTORS} == {torch.float32}
    x = torch.randn(3, 7, D_IN).bfloat16()
    output = layer(x)
    assert output.dtype == torch.bfloat16
    base = F.linear(x, layer.weight, layer.bias)
    exact = looped(layer, x.float(), torch.ones(NUM_EXPERTS, *x.shape), 0.0)
    increment = exact - (x.float() @ layer.weight.float().T + layer.bias.float())
    torch.testing.assert_close(output, (base + increment).bfloat16(), rtol=1e-2, atol=1e-2)


# ---- the method on the pocket model ------------------------------------------------------------------------------

TASK = TaskInfo(index=0, name="first", instructions=["x"])


def token_batch() -> Batch:
    """Three rows of 5, 8 and 11 tokens, right-padded; the last three of each are answers."""
    generator = torch.Generator().manual_seed(0)
    lengths, longest = (5, 8, 11), 11
    ids = torch.randint(5, 60, (3, longest), generator=generator)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
        labels[row, length - 3 : length] = ids[row, length - 3 : length]
    return Batch(sample_ids=["a", "b", "c"], instructions=["x"] * 3, input_ids=ids, attention_mask=mask, labels=labels)


def begun(config: MoeLoraConfig | SequentialLoraConfig, *, checkpointing: bool = False) -> tuple[Backbone, Method]:
    model = load_backbone(BackboneConfig(name="pocket", gradient_checkpointing=checkpointing))
    method = config.build(seed=0)
    method.attach(model, None)
    method.begin_task(model, TASK)
    return model.train(), method


def loss_of(model: Backbone, method: Method, batch: Batch) -> tuple[Loss, Tensor]:
    """The loss, after its backward pass inside the scope, and the language model's own."""
    with method.select(model, batch) as selection:
        outputs = model(batch)
        loss = method.loss(model, batch, outputs, selection)
        loss.total.backward()
        if isinstance(method, MoeLora):
            assert method.experts.record.take() is None, "recomputation recorded gates"
    return loss, outputs.loss.detach()


def test_one_expert_is_plain_lora() -> None:
    """softmax over one expert is 1: five updates from the same draw end in the same bits."""
    batch = token_batch()
    models = dict(
        [
            begun(MoeLoraConfig(num_experts=1, rank=4, alpha=12.0)),
            begun(SequentialLoraConfig(rank=4, alpha=12.0, targets="all_linear")),
        ]
    )
    mine, lora = (method.parameters() for method in models.values())
    routers = {name: mine.pop(name) for name in list(mine) if name.endswith("router")}
    before = {name: value.detach().clone() for name, value in routers.items()}
    matching = {name: lora[f"{name.rpartition('.')[0]}.groups.lora.{name.rpartition('.')[2]}"] for name in mine}
    assert len(matching) == len(lora)
    with torch.no_grad():
        for name, parameter in matching.items():
            parameter.copy_(mine[name])
    without_clipping = OptimizerConfig(learning_rate=1e-2, max_grad_norm=0.0)  # its norm sums in another order
    curves = []
    for model, method in models.items():
        engine = TorchEngine(model, without_clipping)
        losses = []
        for _ in range(5):
            losses.append(float(loss_of(model, method, batch)[0].total.detach()))
            engine.step()
        curves.append(losses)
    assert curves[0] == curves[1]
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert all(torch.equal(mine[name], parameter) for name, parameter in matching.items())
    assert all(torch.equal(routers[name], value) for name, value in before.items())


def test_parameters_beyond_lora_are_one_router_per_layer() -> None:
    """LoRA of rank 32 plus N * d_in for each of the seven linear layers of every decoder layer."""
    model, method = begun(MoeLoraConfig())
    _, lora = begun(SequentialLoraConfig(targets="all_linear"))
    layers = model.target_modules(r".*")
    kinds = {name.rpartition(".")[2] for name in layers}
    assert kinds == {f"{kind}_proj" for kind in ("q", "k", "v", "o", "gate", "up", "down")}
    assert len(layers) == 7 * model.model.config.text_config.num_hidden_layers
    routers = sum(4 * layer.in_features for layer in layers.values())
    assert sum(p.numel() for p in method.parameters().values()) == routers + sum(
        p.numel() for p in lora.parameters().values()
    )


def test_everything_trains_on_every_task() -> None:
    model, method = begun(MoeLoraConfig())
    assert set(trainable_parameters(model)) == set(method.parameters())
    method.end_task(None, TASK, iter(()))
    method.begin_task(model, TaskInfo(index=1, name="second", instructions=["x"]))
    assert set(trainable_parameters(model)) == set(method.parameters())


def test_the_released_start_and_scale() -> None:
    """down ~ N(0, 0.01), up = 0, router as nn.Linear starts (uniform within 1 / sqrt(d_in)), alpha / total rank."""
    _, method = begun(MoeLoraConfig(rank=64, num_experts=16, alpha=48.0, targets="mlp.down_proj"))
    assert isinstance(method, MoeLora)
    for layer in method.experts.layers.values():
        assert layer.scale == 48.0 / 64
        assert float(layer.down.detach().mean()) == pytest.approx(0.0, abs=5e-4)
        assert float(layer.down.detach().std()) == pytest.approx(0.01, rel=0.03)
        assert not layer.up.any()
        bound = layer.in_features**-0.5
        assert 0.98 * bound < float(layer.router.detach().abs().max()) <= bound
        assert float(layer.router.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_routers_of_zeros_mix_evenly() -> None:
    model, method = begun(MoeLoraConfig())
    with torch.no_grad():
        for name, parameter in method.parameters().items():
            if name.endswith("router"):
                parameter.zero_()
    parts = loss_of(model, method, token_batch())[0].parts
    assert float(parts["router_entropy"]) == pytest.approx(math.log(4), rel=1e-5)
    assert float(parts["usage_entropy"]) == pytest.approx(math.log(4), rel=1e-5)


def test_the_logged_entropies_of_recorded_gates() -> None:
    """Two layers, two real tokens and a padded one, which must not count.

    Layer 1: each token has its own expert: 0 and log 2. Layer 2: both have gates (1/4, 3/4): twice their entropy.
    """
    quarter = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    model, method = begun(MoeLoraConfig(num_experts=2, balance=0.5))
    assert isinstance(method, MoeLora)
    batch = replace(token_batch(), attention_mask=torch.tensor([[1, 1, 0]]))
    with method.select(model, batch) as selection:
        outputs = model(token_batch())
        method.experts.record.take()
        with method.experts.record.recording(batch.attention_mask):
            method.experts.record.add(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]))
            method.experts.record.add(torch.tensor([[[0.25, 0.75], [0.25, 0.75], [0.9, 0.1]]]))
            loss = method.loss(model, batch, outputs, selection)
    assert float(loss.parts["router_entropy"]) == pytest.approx(quarter / 2, rel=1e-5)
    assert float(loss.parts["usage_entropy"]) == pytest.approx((math.log(2) + quarter) / 2, rel=1e-5)
    balance = 0.5 * (math.log(2) - (math.log(2) + quarter) / 2)
    assert float((loss.total - outputs.loss).detach()) == pytest.approx(balance, abs=1e-5)


def test_without_balance_the_loss_is_the_language_models() -> None:
    loss, language = loss_of(*begun(MoeLoraConfig()), token_batch())
    assert torch.equal(loss.total.detach(), language)


def test_balance_evens_the_usage() -> None:
    """From sharpened routers: the term brings the usage within 0.02 of log 4; without it the usage stays uneven."""
    missing = {}
    for balance in (0.0, 10.0):
        model, method = begun(MoeLoraConfig(balance=balance))
        with torch.no_grad():
            for name, parameter in method.parameters().items():
                if name.endswith("router"):
                    parameter *= 5.0
        engine = TorchEngine(model, OptimizerConfig(learning_rate=1e-2))
        for _ in range(15):
            loss, _ = loss_of(model, method, token_batch())
            engine.step()
            missing[balance] = math.log(4) - float(loss.parts["usage_entropy"].detach())
    assert missing[10.0] < 0.02 < 0.1 < missing[0.0]


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_gradient_checkpointing_with_dropout_and_balance(balance: float) -> None:
    """Recomputation draws the same places, adds no gates, and the balance term's gradient is the same."""
    found = []
    for checkpointing in (False, True):
        model, method = begun(MoeLoraConfig(dropout=0.2, balance=balance), checkpointing=checkpointing)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in method.parameters().values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        torch.manual_seed(3)
        loss, _ = loss_of(model, method, token_batch())
        gradients = {name: parameter.grad for name, parameter in method.parameters().items()}
        assert all(value is not None and bool(value.any()) for value in gradients.values())
        found.append({"loss": loss.total.detach(), **loss.parts, **gradients})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-7)


def test_generation_records_nothing_and_the_scope_ends_the_recording() -> None:
    model, method = begun(MoeLoraConfig())
    assert isinstance(method, MoeLora)
    batch = token_batch()
    with method.select(model, batch) as selection:
        with torch.no_grad():
            outputs = model(batch)
        assert method.loss(model, batch, outputs, selection).parts == {}
    model(batch)
    assert method.experts.record.take() is None


def test_the_experts_that_served_are_each_layers_heaviest_over_the_prompt() -> None:
    """Gates by hand from hooks on the layers' inputs; generated tokens do not count."""
    model, method = begun(MoeLoraConfig())
    assert isinstance(method, MoeLora)
    right = token_batch()
    batch = replace(right, input_ids=right.input_ids.flip(1), attention_mask=right.attention_mask.flip(1))
    seen: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, ExpertLinear)
        seen.append((inputs[0].float() @ layer.router.T).softmax(dim=-1))

    hooks = [layer.register_forward_pre_hook(keep) for layer in method.experts.layers.values()]
    with method.select(model, batch) as selection:
        model.generate(batch, max_new_tokens=3)
        slots = method.served(selection).slots
    for hook in hooks:
        hook.remove()
    layers, mask = len(method.experts.layers), batch.attention_mask.bool()
    assert len(seen) > layers
    assert method.num_slots == 4 * layers
    expected = [
        [4 * number + int(gates[row][mask[row]].mean(dim=0).argmax()) for number, gates in enumerate(seen[:layers])]
        for row in range(len(batch))
    ]
    assert slots is not None
    assert slots.tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 32, "num_experts": 5}, "rank is 32 and num_experts 5"),
        ({"rank": 4, "num_experts": 8}, "multiple of their number"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"balance": -0.1}, "balance is -0.1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MoeLoraConfig(**options)  # type: ignore[arg-type]
