"""Figures of an update are read one update late, in order and completely; a request to stop reaches all workers."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from components.core.errors import TrainingError
from components.core.events import Note, StepDone, UpdateSkipped
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
    sent: list[Any] = []
    log = UpdateLog(sent.append, lambda: False, CPU, allowed=0)
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
    sent: list[Any] = []
    log = UpdateLog(sent.append, lambda: False, CPU, allowed=0)
    log.read(log.to_average())
    log.add(event(1), {"loss": torch.tensor(1.0)}, torch.tensor(3.0))
    own = log.to_average()
    log.read({"loss": (own["loss"] + 2.0) / 2, STOP: own[STOP]})  # another worker's loss is 2
    assert sent[0].loss == 1.5


def test_a_bad_update_is_told_and_counted_up_to_the_bound_and_then_its_rows_are_named() -> None:
    sent: list[object] = []
    log = UpdateLog(sent.append, lambda: False, CPU, allowed=3, skipped=1, gathered=lambda own: ["r0", *own])
    for update, (loss, norm) in enumerate([(math.nan, math.inf), (0.5, 1.0), (0.5, math.inf)], start=1):
        log.add(event(update), {"loss": torch.tensor(loss)}, torch.tensor(norm), ["r1"])
        log.flush(alone)
    skipped = [(each.update, each.cause, each.skipped) for each in sent if isinstance(each, UpdateSkipped)]
    assert skipped == [(1, "its loss is nan", 2), (3, "the norm of its gradient is inf", 3)]
    assert [each.update for each in sent if isinstance(each, StepDone)] == [2]
    log.add(event(4), {"loss": torch.tensor(-math.inf)}, torch.tensor(math.inf), ["r1", "r2"])
    with pytest.raises(TrainingError) as ended:
        log.flush(alone)
    assert str(ended.value) == (
        "update 4 of task docvqa cannot be made, because its loss is -inf, and training.skip_bad_updates allows 3 such "
        "updates in a task; look at its rows (r0, r1, r2), or lower training.optimizer.learning_rate."
    )
    assert len(sent) == 3


@pytest.mark.parametrize(
    ("own", "mean", "norm", "named"),
    [
        (math.nan, math.nan, math.nan, ["mine"]),
        (1.0, math.nan, math.nan, []),  # another worker's share is the bad one
        (1.0, 1.5, math.inf, ["mine"]),  # a gradient is that of all rows
    ],
)
def test_a_worker_names_its_rows_unless_only_others_are_bad(
    own: float, mean: float, norm: float, named: list[str]
) -> None:
    given: list[list[str]] = []

    def gathered(rows: list[str]) -> list[str]:
        given.append(rows)
        return [f"row{number}" for number in range(40)]

    log = UpdateLog(lambda _: None, lambda: False, CPU, allowed=0, gathered=gathered)
    log.read(log.to_average())
    log.add(event(1), {"loss": torch.tensor(own)}, torch.tensor(norm), ["mine"])
    stop = log.to_average()[STOP]
    with pytest.raises(TrainingError, match=r"\(row0, .*, row31 and 8 more\)"):
        log.read({"loss": torch.tensor(mean), STOP: stop})
    assert given == [named]


def test_a_loss_that_explodes_is_warned_about_once_and_only_when_it_does() -> None:
    def warned(losses: list[float]) -> list[str]:
        sent: list[object] = []
        log = UpdateLog(sent.append, lambda: False, CPU, allowed=0)
        for update, loss in enumerate(losses, start=1):
            log.add(event(update), {"loss": torch.tensor(loss)}, torch.tensor(1.0))
            log.flush(alone)
        assert len([each for each in sent if isinstance(each, StepDone)]) == len(losses)  # nothing is left out
        return [each.text for each in sent if isinstance(each, Note) and each.warning]

    usual = [1.0, 3.0] * 8  # the median is 2
    assert warned([*usual, 20.0]) == []
    (text,) = warned([*usual, 20.5, 99.0, 99.0])
    assert "rose to 20.5 at update 17, over 10 times the median of the 16 before (2)" in text
    assert warned([*usual[:-2], 99.0]) == []  # too few to tell
    assert warned([*[0.001] * 16, 0.9]) == []  # tens of times more, and still small
    assert warned([*[50.0] * 70, *[0.5] * 40, 30.0]) != []  # only the latest 64 count, of which most are small


def test_workers_stop_when_one_of_them_was_asked() -> None:
    asked = [False]
    first, second = (UpdateLog(lambda _: None, looks, CPU, allowed=0) for looks in (lambda: asked[0], lambda: False))
    stopped = []
    for number in range(4):
        asked[0] = number >= 2
        flags = [log.to_average()[STOP] for log in (first, second)]
        for log in (first, second):
            log.read({STOP: torch.stack(flags).mean()})
        assert first.stopping == second.stopping
        stopped.append(first.stopping)
    assert stopped == [False, False, True, True]
