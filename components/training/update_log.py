"""The figures of an update, read one update late: the device never waits for the host in between.

What an update yields (loss, its parts, the gradient's norm) is still being computed when the host has queued it. It is
averaged over workers in the message that starts the next update, and read when that is queued. Whether the run was
asked to stop travels in the same message, so all workers learn it at the same update.

Whether an update counts is decided on the device (see `take_step`); here it is only read that one was skipped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor

from components.core.errors import TrainingError
from components.core.events import Note, StepDone, UpdateSkipped

LOSS, STOP = "loss", "asked to stop"
SHOWN_ROWS = 32  # sample ids in a sentence
# A loss has exploded when it is over EXPLODED times the median of the task's latest losses, and over LEAST.
EXPLODED, LEAST = 10.0, 1.0  # LEAST: nats per answer token
LATEST, ENOUGH = 64, 16  # losses that the median is of; fewer than ENOUGH tell nothing


class UpdateLog:
    """What one worker knows of a task's latest update, and whether all agreed to stop."""

    def __init__(
        self,
        send: Callable[[StepDone | UpdateSkipped | Note], None],
        stop_requested: Callable[[], bool],
        device: torch.device,
        *,
        allowed: int,
        skipped: int = 0,
        gathered: Callable[[list[str]], list[str]] = lambda own: own,
    ) -> None:
        """`stop_requested` is asked in every update; on workers that do not look it says no.

        `allowed` updates of the task may be skipped, `skipped` were before. `gathered` joins the lists of all workers.
        """
        self.stopping = False
        self.skipped = skipped
        self._send, self._stop_requested, self._device = send, stop_requested, device
        self._allowed, self._gathered = allowed, gathered
        self._unread: tuple[Callable[..., StepDone], dict[str, Tensor], Tensor, Sequence[str]] | None = None
        self._losses: deque[float] = deque(maxlen=LATEST)
        self._warned = False

    def to_average(self) -> dict[str, Tensor]:
        """What must be averaged over workers with the next update."""
        stop = self._stop_requested()
        sums = {} if self._unread is None else self._unread[1]
        # filled on the device: a copy of a number would make the host wait for it
        return {**sums, STOP: torch.full((), float(stop), device=self._device)}

    def read(self, means: Mapping[str, Tensor]) -> None:
        """Take the means of `to_average` and send the figures of the latest update, which waits for the device once.

        Raises:
            TrainingError: on all workers at once, when more updates were skipped than are allowed.
        """
        if self._unread is None:
            values = _numbers(means)
        else:
            event, sums, grad_norm, rows = self._unread
            values = _numbers({**means, "": grad_norm})
            done = event(
                loss=values[LOSS],
                parts={name: values[name] for name in sums if name != LOSS},
                grad_norm=values[""],
            )
            self._unread = None
            if math.isfinite(done.loss) and math.isfinite(done.grad_norm):
                self._warn_of_explosion(done)
                self._send(done)
            else:
                self._skip(done, own_loss=sums[LOSS], rows=rows)
        self.stopping = self.stopping or values[STOP] > 0.0

    def add(
        self, event: partial[StepDone], sums: dict[str, Tensor], grad_norm: Tensor, rows: Sequence[str] = ()
    ) -> None:
        """Keep an update's figures: this worker's loss and parts, and the norm, which is the same on all.

        `rows` are the sample ids of this worker's share.
        """
        self._unread = event, sums, grad_norm, rows

    def flush(self, mean_over_workers: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        """Read what is left: before a checkpoint, and at a task's end."""
        self.read(mean_over_workers(self.to_average()))

    def _skip(self, done: StepDone, *, own_loss: Tensor, rows: Sequence[str]) -> None:
        """Tell of an update that was skipped, or end the run."""
        self.skipped += 1
        by_loss = not math.isfinite(done.loss)
        cause = f"its loss is {done.loss}" if by_loss else f"the norm of its gradient is {done.grad_norm}"
        if self.skipped <= self._allowed:
            self._send(
                UpdateSkipped(
                    index=done.index,
                    task=done.task,
                    update=done.update,
                    cause=cause,
                    skipped=self.skipped,
                    allowed=self._allowed,
                )
            )
            return
        # Of a mean that is not finite, the workers whose own part is finite have no row to name.
        innocent = by_loss and math.isfinite(own_loss.item())
        named = self._gathered([] if innocent else [*rows])
        more = f" and {len(named) - SHOWN_ROWS} more" if len(named) > SHOWN_ROWS else ""
        raise TrainingError(
            f"update {done.update} of task {done.task} cannot be made, because {cause}, and training.skip_bad_updates "
            f"allows {self._allowed} such updates in a task; look at its rows ({', '.join(named[:SHOWN_ROWS])}{more}), "
            "or lower training.optimizer.learning_rate."
        )

    def _warn_of_explosion(self, done: StepDone) -> None:
        """Once in a task; nothing is skipped for it."""
        usual = median(self._losses) if len(self._losses) >= ENOUGH else math.inf
        if not self._warned and done.loss > max(LEAST, EXPLODED * usual):
            self._warned = True
            text = (
                f"the loss of task {done.task} rose to {done.loss:.3g} at update {done.update}, over {EXPLODED:g} "
                f"times the median of the {len(self._losses)} before ({usual:.3g}); "
                "training.optimizer.learning_rate may be too high"
            )
            self._send(Note(text=text, warning=True))
        self._losses.append(done.loss)


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    device = next((value.device for value in values.values() if value.device.type != "cpu"), torch.device("cpu"))
    joined = torch.stack([value.detach().to(device, torch.float32) for value in values.values()])
    return dict(zip(values, joined.tolist(), strict=True))
