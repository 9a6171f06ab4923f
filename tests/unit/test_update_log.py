"""Figures of an update are read one update late, in order and completely; a request to stop reaches all workers."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from components.core.errors import TrainingError
from components.core.events import StepDone
from components.training.update_log import STOP, UpdateLog

CPU = torch.device("cpu")


def event(update: int) -> partial[StepDone]:
    return partial(
        StepDone,
        index=0,
        task="docvqa",
        update=update,
        num_updates=9,
        learning_rate=0.1,
        samples_per_s=1.0,
        data_wait_s=0.0,
    )


def alone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


class Reads(TorchDispatchMode):
    """Counts values that the host asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_each_update_is_sent_once_one_update_late() -> None:
    sent: list[StepDone] = []
    log = UpdateLog(sent.append, lambda: False, CPU)
    for update in range(1, 4):
        with Reads() as reads:
            means = log.to_average()
        assert not reads.count
        log.read(means)
        assert [each.update for each in sent] == list(range(1, update))
        log.add(event(update), {"loss": torch.tensor(0.5 * update), "key": torch.tensor(2.0)}, torch.tensor(3.0))
    log.flush(alone)
    assert [(each.update, each.loss, each.parts, each.grad_norm) for each in sent] == [
        (1, 0.5, {"key": 2.0}, 3.0),
        (2, 1.0, {"key": 2.0}, 3.0),
        (3, 1.5, {"key": 2.0}, 3.0),
    ]
    log.flush(alone)
    assert len(sent) == 3


def test_what_is_sent_is_the_mean_over_workers() -> None:
    sent: list[StepDone] = []
    log = UpdateLog(sent.append, lambda: False, CPU)
    log.read(log.to_average())
    log.add(event(1), {"loss": torch.tensor(1.0)}, torch.tensor(3.0))
    own = log.to_average()
    log.read({"loss": (own["loss"] + 2.0) / 2, STOP: own[STOP]})  # another worker's loss is 2
    assert sent[0].loss == 1.5


def test_a_loss_that_diverged_is_an_error_that_names_its_update_and_is_not_sent() -> None:
    sent: list[StepDone] = []
    log = UpdateLog(sent.append, lambda: False, CPU)
    log.add(event(4), {"loss": torch.tensor(math.nan)}, torch.tensor(0.0))
    with pytest.raises(TrainingError, match=r"task docvqa became nan at update 4"):
        log.flush(alone)
    assert not sent


def test_workers_stop_when_one_of_them_was_asked() -> None:
    asked = [False]
    first, second = UpdateLog(lambda _: None, lambda: asked[0], CPU), UpdateLog(lambda _: None, lambda: False, CPU)
    stopped = []
    for number in range(4):
        asked[0] = number >= 2
        flags = [log.to_average()[STOP] for log in (first, second)]
        for log in (first, second):
            log.read({STOP: torch.stack(flags).mean()})
        assert first.stopping == second.stopping
        stopped.append(first.stopping)
    assert stopped == [False, False, True, True]
