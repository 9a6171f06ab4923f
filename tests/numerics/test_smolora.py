"""SMoLoRA against a loop over samples and blocks, against plain LoRA, and against cases worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from components.adapters.experts import GateRecord
from components.adapters.separable import RouterInputs, SeparableLinear
from components.core.errors import ConfigError
from components.data.batch import IGNORE, Batch
from components.methods.base import TaskInfo
from components.methods.smolora import Smolora, SmoloraConfig, averaging_weights
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.training.engine import trainable_parameters

D_IN, D_OUT, BLOCKS, RANK, SCALE, EMBEDDING = 24, 16, 3, 2, 1.75, 7
FACTORS = ("down", "up", "fusion")


def separable_layer(dropout: float = 0.0) -> SeparableLinear:
    """A layer whose increment is as large as its base output, in training mode; its routers do not train."""
    torch.manual_seed(0)
    layer = SeparableLinear(
        nn.Linear(D_IN, D_OUT),
        blocks=BLOCKS,
        rank=RANK,
        scale=SCALE,
        dropout=dropout,
        embedding=EMBEDDING,
        inputs=RouterInputs(),
        record=GateRecord(),
    )
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name in FACTORS)
            if name != "bias":
                parameter.normal_(0.0, 0.5)
    return layer.train()


def looped(layer: SeparableLinear, x: Tensor, positions: list[list[int]], instructions: Tensor) -> Tensor:
    """Sample by sample and block by block as the formula says; `positions` are those averaged for each sample."""
    outputs = []
    for tokens, averaged, instruction in zip(x, positions, instructions, strict=True):
        z = sum((tokens[position] for position in averaged), torch.zeros(D_IN)) / len(averaged)
        chosen = [int((layer.vu_router @ z).argmax()), int((layer.if_router @ instruction).argmax())]
        rows = []
        for token in tokens:
            values = []
            for half, block in enumerate(chosen):
                first = (half * BLOCKS + block) * RANK
                down, up = layer.down[first : first + RANK], layer.up[:, first : first + RANK]
                values.append(SCALE * (up @ (down @ token)))
            exponents = [(layer.fusion[half] @ value).exp() for half, value in enumerate(values)]
            fused = sum(e / (exponents[0] + exponents[1]) * v for e, v in zip(exponents, values, strict=True))
            rows.append(layer.weight @ token + layer.bias + fused)
        outputs.append(torch.stack(rows))
    return torch.stack(outputs)


POSITIONS = [[0, 1, 2, 3], [2, 3, 4], [1], [0, 4], [3], [0, 1]]


def routed_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """x, averaging weights and instructions of six samples of five tokens."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(POSITIONS), 5, D_IN, generator=generator).requires_grad_()
    weights = torch.zeros(len(POSITIONS), 5)
    for row, averaged in enumerate(POSITIONS):
        weights[row, averaged] = 1.0 / len(averaged)
    return x, weights, torch.randn(len(POSITIONS), EMBEDDING, generator=generator)


def test_flat_products_equal_a_loop_over_samples_and_blocks() -> None:
    layer = separable_layer()
    x, weights, instructions = routed_inputs()
    with layer.inputs.using(weights, instructions), layer.record.recording():
        output = layer(x)
        choices = layer.record.take()
    assert choices is not None
    used = choices[0].any(dim=0).sum(dim=1)
    assert bool((used > 1).all()), "the case should use several blocks of both sets"
    expected = looped(layer, x, POSITIONS, instructions)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    inputs = [x, *(layer.get_parameter(name) for name in FACTORS)]
    found = torch.autograd.grad(output.square().sum(), inputs)
    for ours, loops in zip(found, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        assert float(loops.abs().max()) > 0.1
        torch.testing.assert_close(ours, loops, rtol=1e-4, atol=1e-5 * float(loops.abs().max()))


def test_blocks_that_served_no_sample_get_no_gradient() -> None:
    layer = separable_layer()
    x, weights, instructions = routed_inputs()
    with layer.inputs.using(weights[:1], instructions[:1]), layer.record.recording():
        layer(x[:1]).square().sum().backward()
        choices = layer.record.take()
    assert choices is not None
    served = choices[0, 0].flatten().repeat_interleave(RANK).bool()
    assert layer.down.grad is not None
    assert layer.up.grad is not None
    assert torch.equal(layer.down.grad.any(dim=1), served)
    assert torch.equal(layer.up.grad.any(dim=0), served)


def hand_layer() -> SeparableLinear:
    """d_in 2, d_out 1, two blocks of rank 1 per set, scale 2.

    The vu blocks make 2 * 1 * x0 and 2 * 3 * x0, the if blocks 2 * 5 * x0 and 2 * 7 * x0.
    """
    layer = SeparableLinear(
        nn.Linear(2, 1, bias=False),
        blocks=2,
        rank=1,
        scale=2.0,
        dropout=0.0,
        embedding=1,
        inputs=RouterInputs(),
        record=GateRecord(),
    )
    values = {
        "weight": [[100.0, 0.0]],
        "vu_router": [[1.0, 0.0], [0.0, 1.0]],
        "if_router": [[1.0], [-1.0]],
        "down": [[1.0, 0.0]] * 4,
        "up": [[1.0, 3.0, 5.0, 7.0]],
        "fusion": [[0.0], [math.log(3.0) / 14.0]],
    }
    layer.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    return layer


def test_top1_and_fusion_worked_by_hand() -> None:
    """Token (1, 5) alone: z = (1, 5) chooses vu block 1 (6); instruction -1 chooses if block 1 (14).

    Scores 0 and 14 log 3 / 14 = log 3, so shares 1/4 and 3/4: 100 + 6/4 + 14 * 3/4 = 112.
    Averaged with (11, 1): z = (6, 3) chooses vu block 0 (2 for the first token): 100 + 2/4 + 14 * 3/4 = 111.
    """
    layer = hand_layer()
    x = torch.tensor([[[1.0, 5.0], [11.0, 1.0]]])
    for weights, expected in (([1.0, 0.0], 112.0), ([0.5, 0.5], 111.0)):
        with layer.inputs.using(torch.tensor([weights]), torch.tensor([[-1.0]])):
            assert layer(x)[0, 0].item() == pytest.approx(expected, rel=1e-6)


def test_generated_tokens_keep_their_prompts_blocks() -> None:
    """The token (1, 0) alone chooses vu block 0 (2); after a prompt that chose block 1 that one serves it (6).

    The if block is 0 (10) in both; the shares are softmax(0, 10 log 3 / 14).
    """
    layer = hand_layer()
    prompt, token = torch.tensor([[[1.0, 5.0], [1.0, 5.0]]]), torch.tensor([[[1.0, 0.0]]])
    with layer.inputs.using(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0]])):
        layer(prompt)
        continued = layer(token).item()
    with layer.inputs.using(torch.tensor([[1.0]]), torch.tensor([[1.0]])):
        alone = layer(token).item()
    share = 1.0 / (1.0 + 3.0 ** (10.0 / 14.0))
    assert continued == pytest.approx(100.0 + share * 6.0 + (1.0 - share) * 10.0, rel=1e-6)
    assert alone == pytest.approx(100.0 + share * 2.0 + (1.0 - share) * 10.0, rel=1e-6)


def test_outside_a_scope_the_layer_is_its_base() -> None:
    layer = separable_layer()
    x, weights, instructions = routed_inputs()
    base = nn.functional.linear(x, layer.weight, layer.bias)
    with layer.inputs.using(weights, instructions):
        assert not torch.equal(layer(x), base)
    assert torch.equal(layer(x), base)


def test_straight_through_routers_get_the_gradient_of_the_softmax_and_fixed_ones_none() -> None:
    """Values stay those of the one-hot choice; the gradient of its gates goes on through softmax(scores) by hand."""
    layer = separable_layer()
    x, weights, instructions = routed_inputs()
    with layer.inputs.using(weights, instructions):
        fixed = layer(x)
        fixed.square().sum().backward()
        assert layer.vu_router.grad is None
        layer.vu_router.requires_grad_(True)
        layer.if_router.requires_grad_(True)
        with layer.record.recording():
            output = layer(x)
            choices = layer.record.take()
    assert choices is not None
    torch.testing.assert_close(output, fixed, rtol=1e-6, atol=1e-6)
    z = torch.einsum("bt,bti->bi", weights, x).detach()
    found = torch.autograd.grad(output.square().sum(), [layer.vu_router, layer.if_router])
    for index, (gradient, read) in enumerate(zip(found, (z, instructions), strict=True)):
        scores = read @ layer.get_parameter(("vu_router", "if_router")[index]).T
        gates = scores.softmax(dim=-1).detach()
        expected = torch.zeros_like(gradient)
        for sample in range(len(x)):
            slopes = slopes_of_gates(layer, x[sample].detach(), choices[0, sample].detach(), index)
            to_scores = gates[sample] * (slopes - gates[sample] @ slopes)
            expected += to_scores[:, None] * read[sample][None, :]
        assert float(expected.abs().max()) > 0.1
        torch.testing.assert_close(gradient, expected.detach(), rtol=1e-3, atol=1e-3)


def slopes_of_gates(layer: SeparableLinear, tokens: Tensor, gates: Tensor, half: int) -> Tensor:
    """d(sum of squared outputs) / d(gate of each block of a set), with gates [2, K] as free numbers; by autograd over
    the written-out formula."""
    free = gates.clone().requires_grad_()
    total = torch.zeros(())
    for token in tokens:
        values = []
        for row in range(2):
            parts = []
            for block in range(BLOCKS):
                first = (row * BLOCKS + block) * RANK
                down, up = layer.down[first : first + RANK], layer.up[:, first : first + RANK]
                parts.append(free[row, block] * SCALE * (up @ (down @ token)))
            values.append(torch.stack(parts).sum(dim=0))
        shares = torch.stack([layer.fusion[0] @ values[0], layer.fusion[1] @ values[1]]).softmax(dim=0)
        output = layer.weight @ token + layer.bias + shares[0] * values[0] + shares[1] * values[1]
        total = total + output.square().sum()
    return torch.autograd.grad(total, free)[0][half]


def test_each_set_drops_inputs_of_its_own_in_training_only() -> None:
    layer = separable_layer(0.5)
    x, weights, instructions = routed_inputs()
    torch.manual_seed(3)
    hidden = layer._project_down(x)
    torch.manual_seed(3)
    halves = [nn.functional.dropout(x, 0.5) for _ in range(2)]
    assert not torch.equal(halves[0], halves[1])
    width = BLOCKS * RANK
    expected = torch.cat([halves[0] @ layer.down[:width].T, halves[1] @ layer.down[width:].T], dim=-1)
    torch.testing.assert_close(hidden, expected)
    layer.eval()
    with layer.inputs.using(weights, instructions):
        torch.testing.assert_close(layer(x), looped(layer, x, POSITIONS, instructions), rtol=1e-5, atol=1e-5)


# ---- what the routers read ---------------------------------------------------------------------------------------


def padded_batch(**changes: Tensor) -> Batch:
    """Right-padded: six tokens of which the last two are answers and token 9 is the picture; and four, no picture."""
    tensors = {
        "input_ids": torch.tensor([[1, 9, 9, 4, 5, 6], [1, 2, 3, 4, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
        "labels": torch.tensor([[IGNORE] * 4 + [5, 6], [IGNORE] * 3 + [4, IGNORE, IGNORE]]),
        **changes,
    }
    return Batch(sample_ids=["a", "b"], instructions=["x", "y"], **tensors)


def test_averaged_positions() -> None:
    quarter, third = [0.25] * 4 + [0.0] * 2, [1 / 3] * 3 + [0.0] * 3
    torch.testing.assert_close(averaging_weights(padded_batch(), None), torch.tensor([quarter, third]))
    picture = [0.0, 0.5, 0.5, 0.0, 0.0, 0.0]
    torch.testing.assert_close(averaging_weights(padded_batch(), 9), torch.tensor([picture, third]))
    unlabelled = padded_batch(labels=torch.full((2, 6), IGNORE))  # a prompt: all real tokens
    torch.testing.assert_close(averaging_weights(unlabelled, None), torch.tensor([[1 / 6] * 6, [0.25] * 4 + [0.0] * 2]))
    answers = padded_batch(labels=torch.tensor([[1, 9, 9, 4, 5, 6], [1, 2, 3, 4, IGNORE, IGNORE]]))
    assert torch.equal(averaging_weights(answers, None), averaging_weights(unlabelled, None))


# ---- the method on the pocket model ------------------------------------------------------------------------------


def begun(config: SmoloraConfig, *, index: int = 0) -> tuple[Backbone, Smolora]:
    model = load_backbone(BackboneConfig(name="pocket"))
    method = config.build(seed=0)
    method.attach(model, None)
    for task in range(index):
        method.tasks.append(str(task))
    method.begin_task(model, TaskInfo(index=index, name="now", instructions=["x"]))
    return model.train(), method


def text_batch(instructions: list[str]) -> Batch:
    """Rows of eight tokens; the last three are answers."""
    ids = torch.randint(5, 60, (len(instructions), 8), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, IGNORE)
    labels[:, 5:] = ids[:, 5:]
    names = [str(row) for row in range(len(instructions))]
    return Batch(
        sample_ids=names,
        instructions=instructions,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=labels,
    )


def choices_of(model: Backbone, method: Smolora, batch: Batch) -> Tensor:
    """Choices [L, B, 2, K] of one training pass."""
    with method.select(model, batch):
        model(batch)
        choices = method.layers.record.take()
    assert choices is not None
    return choices.detach()


def test_the_instruction_decides_one_set_and_the_layers_input_the_other() -> None:
    """Samples with the same instruction share their if blocks, with the same tokens their vu blocks (first layer)."""
    model, method = begun(SmoloraConfig.tiny())
    asks = ["How many?\nAnswer in one word.", "Which?\nAnswer in one word.", "Why?\nExplain it in a full sentence."]
    choices = choices_of(model, method, text_batch(asks))
    assert torch.equal(choices[:, 0, 1], choices[:, 1, 1]), "only the last line is read"
    assert not torch.equal(choices[:, 0, 1], choices[:, 2, 1])
    assert not torch.equal(choices[:, 0, 0], choices[:, 1, 0])
    same = text_batch(["a", "b"])
    same.input_ids[1] = same.input_ids[0]
    choices = choices_of(model, method, same)
    assert torch.equal(choices[0, 0, 0], choices[0, 1, 0])


def test_an_answer_cannot_change_the_choice_it_is_trained_under() -> None:
    model, method = begun(SmoloraConfig.tiny())
    batch = text_batch(["a", "b"])
    before = choices_of(model, method, batch)
    batch.input_ids[:, 5:] += 1
    assert torch.equal(choices_of(model, method, batch), before)


def test_a_prompt_gets_the_blocks_it_was_trained_with_and_keeps_them_while_it_is_answered() -> None:
    """In every layer, though the training pass also holds the answer and generation goes on token by token."""
    model, method = begun(SmoloraConfig.tiny())
    with torch.no_grad():
        for name, parameter in method.parameters().items():
            if name.endswith("up"):
                parameter.normal_(0.0, 0.05, generator=torch.Generator().manual_seed(2))
    batch = text_batch(["a", "b"])
    trained = choices_of(model, method, batch)
    prompts = replace(
        batch,
        input_ids=batch.input_ids[:, :5],
        attention_mask=batch.attention_mask[:, :5],
        labels=torch.full_like(batch.labels[:, :5], IGNORE),
    )
    model.eval()
    with method.select(model, prompts) as selection:
        assert any(len(answer) > 1 for answer in model.generate(prompts, max_new_tokens=4))
        served = torch.stack([method.layers.inputs.held[layer] for layer in method.layers.layers.values()])
        slots = method.served(selection).slots
    assert torch.equal(served, trained)
    assert slots is not None
    sets = [trained[layer, :, half] for layer in range(len(trained)) for half in range(2)]  # two in every layer
    told = torch.nn.functional.one_hot(slots, method.num_slots).sum(dim=1)
    assert torch.equal(told, torch.cat(sets, dim=1).long())


def test_what_trains() -> None:
    """Routers never with "fixed"; with "straight_through" in the first task only. Blocks and fusion always."""
    for router, index, expected in (("fixed", 0, False), ("straight_through", 0, True), ("straight_through", 1, False)):
        model, method = begun(SmoloraConfig(sentence_encoder="hash", router=router), index=index)  # type: ignore[arg-type]
        wanted = {name for name in method.parameters() if expected or not name.endswith("router")}
        assert set(trainable_parameters(model)) == wanted


def test_the_released_start_and_scale() -> None:
    """down ~ N(0, 0.01), up = 0, routers and fusion uniform within 1 / sqrt(inputs); scale 256 / 128 = 2."""
    _, method = begun(SmoloraConfig.tiny())
    for layer in method.layers.layers.values():
        assert layer.scale == 2.0
        assert layer.down.shape == (128, layer.in_features)
        assert float(layer.down.detach().std()) == pytest.approx(0.01, rel=0.05)
        assert not layer.up.any()
        for name in ("vu_router", "if_router", "fusion"):
            values = layer.get_parameter(name).detach()
            bound = values.shape[1] ** -0.5
            assert 0.8 * bound < float(values.abs().max()) <= bound


def test_logged_usage() -> None:
    """Two layers, two samples. In one layer they share a block, in the other they do not: (0 + log 2) / 2."""
    model, method = begun(SmoloraConfig.tiny())
    batch = text_batch(["a", "b"])
    first, second = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]
    with method.select(model, batch) as selection:
        outputs = model(batch)
        method.layers.record.take()
        with method.layers.record.recording():
            method.layers.record.add(torch.tensor([[first, first], [first, second]]))
            method.layers.record.add(torch.tensor([[first, second], [second, second]]))
            loss = method.loss(model, batch, outputs, selection)
    assert torch.equal(loss.total, outputs.loss)
    for part in ("vu_usage_entropy", "if_usage_entropy"):
        assert float(loss.parts[part]) == pytest.approx(math.log(2) / 2, rel=1e-6)


@pytest.mark.parametrize("router", ["fixed", "straight_through"])
def test_gradient_checkpointing_with_dropout(router: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = load_backbone(BackboneConfig(name="pocket", gradient_checkpointing=checkpointing))
        method = SmoloraConfig(sentence_encoder="hash", router=router, dropout=0.2).build(seed=0)  # type: ignore[arg-type]
        method.attach(model, None)
        method.begin_task(model, TaskInfo(index=0, name="now", instructions=["x"]))
        model.train()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in method.parameters().values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        batch = text_batch(["a", "b", "c"])
        torch.manual_seed(3)
        with method.select(model, batch) as selection:
            loss = method.loss(model, batch, model(batch), selection)
            loss.total.backward()
            assert method.layers.record.take() is None, "recomputation recorded choices"
        trained = {name: value.grad for name, value in trainable_parameters(model).items()}
        assert all(value is not None and bool(value.any()) for value in trained.values())
        found.append({"loss": loss.total.detach(), **loss.parts, **trained})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, "blocks is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SmoloraConfig(**options)  # type: ignore[arg-type]
