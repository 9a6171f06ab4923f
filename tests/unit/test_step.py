"""One optimizer update: the same however its rows are split, and refused where it cannot go on."""

from __future__ import annotations

import math
import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from components.core.errors import TrainingError
from components.data.batch import IGNORE, Batch, Example, collate
from components.methods.base import Loss, MethodConfig, MethodState, Selection, TaskInfo
from components.methods.moelora import MoeLoraConfig
from components.methods.sequential_lora import SequentialLora, SequentialLoraConfig
from components.models.backbone import Backbone, Outputs, load_backbone
from components.models.config import BackboneConfig
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig, build_optimizer, load_plain_moments, plain_moments
from components.training.step import require_finite_state, step_seed, take_step


def _batch(*answers: int) -> Batch:
    """A row of six prompt tokens for each number of answer tokens."""
    rows: list[Example] = []
    for number, answer in enumerate(answers):
        ids = torch.randint(5, 60, (6 + answer,), generator=torch.Generator().manual_seed(number))
        labels = torch.where(torch.arange(len(ids)) < 6, torch.tensor(IGNORE), ids)
        rows.append(Example(sample_id=str(number), instruction="Read it.", input_ids=ids, labels=labels))
    return collate(rows, pad_id=0, padding_side="right")


def _trained(batches: list[Batch], *, accumulation: int) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of one update and what trained, after it."""
    model = load_backbone(BackboneConfig(name="pocket"))
    torch.manual_seed(0)
    method = SequentialLoraConfig(rank=2).build(seed=0)
    method.attach(model, None)
    method.begin_task(model, TaskInfo(index=0, name="a", instructions=["Read it."]))
    engine = TorchEngine(model, OptimizerConfig(learning_rate=1e-3), accumulation=accumulation)
    engine.set_learning_rate(1e-3)
    sums, _ = take_step(engine, model, method, batches, torch.device("cpu"))
    return float(sums["loss"]), {name: each.detach().clone() for name, each in trainable_parameters(model).items()}


def test_an_update_is_the_same_however_its_rows_are_split() -> None:
    """Rows with 1 and 5 answer tokens: micro-batches that weighed alike would give another loss."""
    both = _batch(1, 5)
    whole_loss, whole = _trained([both], accumulation=1)
    split_loss, split = _trained([*both.singles()], accumulation=2)
    assert split_loss == pytest.approx(whole_loss, rel=1e-5)
    for name, value in whole.items():
        assert torch.allclose(split[name], value, atol=1e-5), name


def test_an_update_without_a_step_is_an_error() -> None:
    with pytest.raises(TrainingError, match="without a step"):
        _trained([_batch(2)], accumulation=2)


class Offset(SequentialLora[SequentialLoraConfig]):
    """Adds to the loss what has no gradient, as a penalty on frozen values."""

    offset = 0.0

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        return Loss(total=outputs.loss + self.offset)


@pytest.mark.parametrize("fused", [False, True], ids=["by the host", "by torch's kernel, as on a GPU"])
@pytest.mark.parametrize("offset", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_changes_nothing_though_its_gradient_is(offset: float, fused: bool) -> None:
    model = load_backbone(BackboneConfig(name="pocket"))
    method = Offset(SequentialLoraConfig(rank=2), seed=0)
    method.attach(model, None)
    method.begin_task(model, TaskInfo(index=0, name="a", instructions=["Read it."]))
    engine = TorchEngine(model, OptimizerConfig(learning_rate=1e-3), accumulation=2)
    if fused:
        kept = build_optimizer(trainable_parameters(model), OptimizerConfig(learning_rate=1e-3), {}, fused=True)
        engine._optimizer = kept
    values: list[dict[str, torch.Tensor]] = []
    for added in (0.0, offset, 0.0):
        method.offset = added
        take_step(engine, model, method, [_batch(1, 5), _batch(2, 3)], torch.device("cpu"))
        assert engine.skipped is not math.isfinite(added)
        trained = {name: each.detach().clone() for name, each in trainable_parameters(model).items()}
        values.append({**trained, **engine.optimizer_state()})
    before, met, after = values
    assert all(torch.equal(before[name], met[name]) for name in before)
    assert int(met["step"]) == 1
    assert int(after["step"]) == 2
    assert any(not torch.equal(met[name], after[name]) for name in met if name != "step")


def test_what_a_method_carries_is_finite() -> None:
    tensors = {"a": torch.ones(2), "counts": torch.tensor([1, 2])}
    require_finite_state(MethodState(tensors=tensors, structure={}), "docvqa")
    for bad in (math.nan, math.inf):
        state = MethodState(tensors={**tensors, "fisher": torch.tensor([0.0, bad])}, structure={})
        with pytest.raises(TrainingError, match=r"^task docvqa left numbers .* first in fisher; look at"):
            require_finite_state(state, "docvqa")


def test_fused_steps_are_those_of_the_plain_optimizer_and_its_moments_can_be_loaded() -> None:
    """On a GPU the kernel is fused, and it must start from a checkpoint of any other."""
    start = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    found = []
    for first, second in ((False, False), (True, False), (False, True), (True, True)):
        parameters = {"a": torch.nn.Parameter(start.clone())}
        optimizer = build_optimizer(parameters, config, {}, fused=first)
        for step in range(6):
            if step == 3:
                moments = plain_moments(optimizer, parameters)
                optimizer = build_optimizer(parameters, config, {}, fused=second)
                load_plain_moments(optimizer, parameters, moments)
            parameters["a"].grad = torch.full_like(start, 0.1 * (step + 1))
            optimizer.norm = torch.tensor(1.0)
            optimizer.step()
        assert int(plain_moments(optimizer, parameters)["step"]) == 6
        found.append(parameters["a"].detach())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-7)


def test_every_step_of_every_worker_has_its_own_seed() -> None:
    places = [(0, task, update, rank) for task in range(3) for update in range(50) for rank in range(4)]
    assert len({step_seed(*place) for place in places}) == len(places)


class Waits(TorchDispatchMode):
    """Names operations for which a host must wait for its GPU: their result, or its shape, depends on values.

    Not those of transformers' own masks, which ask once or twice whether a batch is padded.
    """

    OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(each is not None and each.dtype == torch.bool for each in args[1])
        waits = by_mask or any(name.startswith(each) for each in self.OPERATIONS)
        if waits and not any(frame.filename.endswith("masking_utils.py") for frame in traceback.extract_stack()):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Unwatched(TorchEngine):
    """AdamW counts its steps in numbers on the CPU, which cost no wait."""

    def step(self) -> bool:
        with _disable_current_modes():
            return super().step()


@pytest.mark.parametrize(
    "config",
    [
        SequentialLoraConfig(rank=2, dropout=0.1),
        SequentialLoraConfig(rank=2, targets="all_linear", train_projector=True),
        MoeLoraConfig(rank=4, num_experts=2, dropout=0.1),
    ],
    ids=["lora", "lora, projector", "moelora"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_host_waits_for_nothing_inside_an_update(config: MethodConfig, checkpointing: bool) -> None:
    model = load_backbone(BackboneConfig(name="pocket", gradient_checkpointing=checkpointing))
    method = config.build(seed=0)
    method.attach(model, None)
    method.begin_task(model, TaskInfo(index=0, name="a", instructions=["Read it."]))
    engine = Unwatched(model, OptimizerConfig(learning_rate=1e-3), accumulation=2)
    model.train()
    batches = [_batch(1, 5), _batch(2, 3)]
    with Waits() as waits:
        sums, means = take_step(engine, model, method, batches, torch.device("cpu"), {"n": torch.zeros(())})
    assert set(sums) >= {"loss"}
    assert set(means) == {"n"}
    assert not waits.found
    with Waits() as waits:  # the count sees what it must
        float(sums["loss"])
        _batch(2).labels[_batch(2).labels > 0].sum()
    assert {"_local_scalar_dense", "index"} <= set(waits.found)
