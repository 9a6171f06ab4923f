"""Checkpoints of learned tasks that the runs of a sweep share, so that identical work is done once.

Two runs that agree on everything that learning a task depends on end it with the same bits. The first one to learn it
leaves its checkpoint under a key that is a digest of all that; the others attach it. Scoring is never shared: each run
scores by its own evaluation settings. One thing can differ by rounding: a sentence encoder gets a stream's instructions
in batches, and other tasks later in the stream make other batches.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from components.core.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from components.core.files import make_folder, whole_folder
from components.core.fingerprint import code_fingerprint
from components.core.location import Place
from components.core.lock import Held, locked
from components.core.run_files import STATE_FILE
from components.models.source import model_source
from components.training.config import RunConfig
from components.training.ranks import of_rank_0
from components.training.schedule import ScheduledTask
from components.training.stopping import LOOK_EVERY_S, StopRequested, StopWatch

# Options that do not influence learning: where a run is kept and watched, and how it is scored. The rest is in the key.
NOT_LEARNED_FROM = ("run_id", "storage", "stream", "evaluation", "tracking")


@dataclass(frozen=True, kw_only=True)
class CachedTask:
    """The folder of one task's checkpoint, named by its key."""

    folder: Place

    @contextmanager
    def lock(self, *, wait_s: float) -> Iterator[None]:
        """Hold it while looking, learning and writing: other processes wait, and then find the checkpoint.

        Raises `Held` when another process still holds it after `wait_s` seconds.
        """
        make_folder(self.folder.parent)
        end = time.monotonic() + wait_s
        with locked(self.folder.parent / f"{self.folder.name}.lock", keep_waiting=lambda _: time.monotonic() < end):
            yield

    def hit(self) -> bool:
        """Whether the checkpoint is there."""
        return (self.folder / STATE_FILE).is_file()

    def read(self) -> Checkpoint:
        """The checkpoint; raises `CheckpointError` when it is damaged."""
        return read_checkpoint(self.folder)

    def put(self, state: Mapping[str, object], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write the checkpoint whole or not at all, while holding the lock."""
        with whole_folder(self.folder, last=STATE_FILE) as partial:
            write_checkpoint(partial, state, tensors)


def learned_by_a_twin(cached: CachedTask, held: ExitStack, *, rank: int, stop: StopWatch) -> bool:
    """Whether the task's checkpoint is there; while an identical run learns it, wait. Rank 0 then holds its lock.

    Rank 0 alone looks: another worker could look a moment later and see otherwise. It tells the others every second,
    because a collective that waits for as long as a task takes would time out. Raises `StopRequested`.
    """
    while True:
        found = ""
        if rank == 0:
            try:
                held.enter_context(cached.lock(wait_s=LOOK_EVERY_S))
                found = "hit" if cached.hit() else "miss"
            except Held:
                found = "stop" if stop.requested() else "wait"
        found = of_rank_0(found)
        if found == "stop":
            raise StopRequested
        if found != "wait":
            return found == "hit"


def cached_tasks(root: Place, config: RunConfig, schedule: Sequence[ScheduledTask]) -> tuple[CachedTask | None, ...]:
    """Where each scheduled task of a run is cached below `root`; None where nothing is trained."""
    learned: list[object] = []
    cached: list[CachedTask | None] = []
    for scheduled in schedule:
        learned.append([scheduled.task.name, [split.digest for split in scheduled.splits], scheduled.num_updates])
        text = json.dumps([_common(config), learned], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        cached.append(CachedTask(folder=root / key) if scheduled.num_updates else None)
    return tuple(cached)


def _common(config: RunConfig) -> dict[str, object]:
    """What learning any task of a run depends on: options, code, weights, torch and the number of threads."""
    options = {name: value for name, value in config.to_json().items() if name not in NOT_LEARNED_FROM}
    training = options["training"]
    assert isinstance(training, dict)
    options["training"] = {name: value for name, value in training.items() if name != "checkpoint_every_updates"}
    return {
        "options": options,
        "threads": config.cluster.threads(),
        "code": code_fingerprint(),
        "backbone": model_source(config.backbone).fingerprint(),
        "torch": torch.__version__,
    }
