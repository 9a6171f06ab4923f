"""One optimizer update: the same however its rows are split, and refused where it cannot go on."""

from __future__ import annotations

import math

import pytest
import torch

from components.core.errors import TrainingError
from components.data.batch import IGNORE, Batch, Example, collate
from components.methods.base import TaskInfo
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
