"""The figures of an update, read one update late: the device never waits for the host in between.

What an update yields (loss, its parts, the gradient's norm) is still being computed when the host has queued it. It is
averaged over workers in the message that starts the next update, and read when that is queued. Whether the run was
asked to stop travels in the same message, so all workers learn it at the same update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from components.core.events import StepDone
from components.training.step import require_finite

LOSS, STOP = "loss", "asked to stop"


class UpdateLog:
    """What one worker knows of its latest update, and whether all agreed to stop."""

    def __init__(
        self, send: Callable[[StepDone], None], stop_requested: Callable[[], bool], device: torch.device
    ) -> None:
        """`stop_requested` is asked in every update; on workers that do not look it says no."""
        self.stopping = False
        self._send, self._stop_requested, self._device = send, stop_requested, device
        self._unread: tuple[Callable[..., StepDone], dict[str, Tensor], Tensor] | None = None

    def to_average(self) -> dict[str, Tensor]:
        """What must be averaged over workers with the next update."""
        stop = self._stop_requested()
        sums = {} if self._unread is None else self._unread[1]
        # filled on the device: a copy of a number would make the host wait for it
        return {**sums, STOP: torch.full((), float(stop), device=self._device)}

    def read(self, means: Mapping[str, Tensor]) -> None:
        """Take the means of `to_average` and send the figures of the latest update, which waits for the device once.

        Raises:
            TrainingError: the loss is not finite.
        """
        if self._unread is None:
            values = _numbers(means)
        else:
            event, sums, grad_norm = self._unread
            values = _numbers({**means, "": grad_norm})
            done = event(
                loss=values[LOSS],
                parts={name: values[name] for name in sums if name != LOSS},
                grad_norm=values[""],
            )
            self._unread = None
            require_finite(done.loss, done.task, done.update)
            self._send(done)
        self.stopping = self.stopping or values[STOP] > 0.0

    def add(self, event: partial[StepDone], sums: dict[str, Tensor], grad_norm: Tensor) -> None:
        """Keep an update's figures: this worker's loss and parts, and the norm, which is the same on all."""
        self._unread = event, sums, grad_norm

    def flush(self, mean_over_workers: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        """Read what is left: before a checkpoint, which must hold nothing that has diverged, and at a task's end."""
        self.read(mean_over_workers(self.to_average()))


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    device = next((value.device for value in values.values() if value.device.type != "cpu"), torch.device("cpu"))
    joined = torch.stack([value.detach().to(device, torch.float32) for value in values.values()])
    return dict(zip(values, joined.tolist(), strict=True))
