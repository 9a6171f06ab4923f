"""Ray Train's functions in a run's only worker: those of its local mode, with checkpoints that last.

Its own local mode forgets what is reported to it. Here a report ends as it does with Ray Train's controller: the
checkpoint is in the run's folder, Ray Train's list names it, and the one before the last is gone. So a run that was
begun this way can go on with a controller, and the other way round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray.data import Dataset
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.train_fn_utils import LocalTrainFnUtils
from torch._C._distributed_c10d import HashStore  # torch.distributed has it, and does not list it

from components.core.files import remove_folder
from components.core.location import Place
from components.core.run_files import STATE_FILE
from components.training.restoring import Listed, read_list, write_list

KEPT = 2  # checkpoints to continue from that a run has at a time


class LocalTraining(LocalTrainFnUtils):
    """What `ray.train.report` and its like do in this process."""

    def __init__(self, run_dir: Place, datasets: Mapping[str, Dataset], data: ray.train.DataConfig) -> None:
        """`data`: how the datasets are read, as a trainer takes it."""
        (shards,) = data.configure({**datasets}, world_size=1, worker_handles=None, worker_node_ids=None)
        super().__init__(run_dir.name, shards)
        self._run_dir, self._list = run_dir, read_list(run_dir)
        if self._list:
            self._last_checkpoint = Checkpoint(path=str(run_dir / self._list[-1].folder))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._kept: Future[None] | None = None

    def report(
        self,
        metrics: dict[str, Any],  # Any: as Ray has it
        checkpoint: Checkpoint | None = None,
        checkpoint_dir_name: str | None = None,
        checkpoint_upload_mode: CheckpointUploadMode = CheckpointUploadMode.SYNC,
        delete_local_checkpoint_after_upload: bool | None = None,
        checkpoint_upload_fn: Callable[[Checkpoint, str], Checkpoint] | None = None,
        validation: object = False,
    ) -> None:
        """Keep a checkpoint that `checkpoint_upload_fn` copies into the run's folder; in the mode ASYNC beside what
        follows. What an earlier copy raised is raised here.
        """
        assert checkpoint is not None, "the only worker reports with files"
        assert checkpoint_upload_fn is not None, "and says how they are copied"
        name = checkpoint_dir_name or StorageContext.make_default_checkpoint_dir_name()
        listed = Listed(folder=name, task=metrics["task"], update=metrics["update"])
        self.wait()  # one copy at a time, in their order
        self._kept = self._thread.submit(
            self._keep, listed, checkpoint, checkpoint_upload_fn, delete=bool(delete_local_checkpoint_after_upload)
        )
        if checkpoint_upload_mode is CheckpointUploadMode.SYNC:
            self.wait()

    def wait(self) -> None:
        """Wait for the copy that is under way; raises what it raised."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.result()

    def close(self) -> None:
        """Wait as `wait` does, and end the thread that copies."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _keep(
        self, listed: Listed, checkpoint: Checkpoint, copied: Callable[[Checkpoint, str], Checkpoint], *, delete: bool
    ) -> None:
        copied(checkpoint, listed.folder)
        if delete:
            remove_folder(Path(checkpoint.path))
        superseded, self._list = self._list[: 1 - KEPT], [*self._list[1 - KEPT :], listed]
        # In this order: whatever the list names is there, also where this process is killed between two lines.
        write_list(self._run_dir, self._list)
        for each in superseded:
            remove_folder(self._run_dir / each.folder, STATE_FILE)


def join_alone(backend: str) -> None:
    """Make this process a process group of its own, unless it is one, with the variables that Ray Train gives workers.

    For good: DeepSpeed keeps the first group that it has seen.
    """
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    if not dist.is_initialized():
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
