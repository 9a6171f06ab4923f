"""One optimizer update: the same however its rows are split, and refused where it cannot go on."""

from __future__ import annotations

import math
import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from components.core.errors import TrainingError
from components.data.batch import IGNORE, Batch, Example, collate
from components.methods.base import MethodConfig, TaskInfo
from components.methods.moelora import MoeLoraConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig
from components.training.step import require_finite, step_seed, take_step


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


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_diverged_loss_is_an_error_that_says_what_to_do(loss: float) -> None:
    with pytest.raises(TrainingError, match=r"loss of task docvqa became .* at update 7; lower .*learning_rate"):
        require_finite(loss, "docvqa", 7)
    require_finite(0.0, "docvqa", 7)


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
