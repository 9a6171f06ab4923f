"""A run's checkpoints, between tasks and inside them: written for Ray Train, read to resume."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path, PurePosixPath

import ray.train
from ray.train import CheckpointUploadMode
from torch import Tensor

from components.core.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from components.core.checkpoint_files import ADVICE
from components.core.errors import CheckpointError
from components.core.files import whole_folder
from components.core.leftovers import clear_temporary, temporary_folder
from components.core.location import Location, Place, fetched
from components.core.run_files import KEPT_CHECKPOINTS, STATE_FILE
from components.core.tensor_store import TensorStore
from components.methods.base import MethodState
from components.training.plan import WorkerPlan
from components.training.ray_storage import ray_storage
from components.training.stream_state import StreamState

METHOD = "method"  # the stem of what the method carries; the run's checkpoints share its tensors


class StreamCheckpointer:
    """A run's checkpoints, written by rank 0. `backbone` is the fingerprint of the frozen weights."""

    def __init__(self, plan: WorkerPlan, *, rank: int, backbone: str) -> None:
        self.plan, self.rank, self.store = plan, rank, TensorStore(plan.run_dir, METHOD)
        if rank == 0:
            clear_temporary()
        in_store = isinstance(plan.run_dir, Location)
        self._mode = CheckpointUploadMode.ASYNC if in_store else CheckpointUploadMode.SYNC
        self.identity = {"backbone": backbone, "method": plan.config.method.name, "stream": plan.stream.digest}

    def latest(self) -> Checkpoint | None:
        """The checkpoint to resume from, if there is one; raises `CheckpointError` when it is of another run."""
        reported, origin = ray.train.get_checkpoint(), self.plan.origin
        if reported is None and origin is None:
            return None
        if reported is None:  # whatever Ray Train's list says, such a run never begins at task 1
            assert origin is not None
            return self._read(origin.checkpoint_in(self.plan.run_dir))
        return self._read(self.plan.run_dir / PurePosixPath(reported.path).name)

    def _read(self, folder: Place) -> Checkpoint:
        checkpoint = self.of_this_run(read_checkpoint(folder, self.plan.run_dir))
        if self.rank == 0:
            self.store.remember(checkpoint)
        return checkpoint

    def of_this_run(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint; raises `CheckpointError` when it is of another run."""
        for name, expected in self.identity.items():
            if checkpoint.state.get(name) != expected:
                raise CheckpointError(
                    f"the checkpoint of run {self.plan.config.run_id} has {name} {checkpoint.state.get(name)!r}, this "
                    f"run has {expected!r}; use another --run-id."
                )
        return checkpoint

    def hold(self, state: MethodState) -> None:
        """Keep one copy in memory of what is in `state` and in the last checkpoint, and not two."""
        if self.rank == 0:
            self.store.hold(state.tensors)

    def keep(self, name: str, stream_state: StreamState, state: MethodState) -> None:
        """Write the method after a learned task into the run's folder, for users."""
        if self.rank == 0:
            shared = {METHOD: self.store.put(state.tensors)}
            target = self.plan.run_dir / KEPT_CHECKPOINTS / name
            with whole_folder(target, durable=True, replace=True, last=STATE_FILE) as folder:
                write_checkpoint(folder, self._content(stream_state, state), {}, shared)

    def report(
        self,
        stream_state: StreamState,
        state: MethodState,
        unfinished: dict[str, dict[str, Tensor]] | None = None,
        *,
        mode: CheckpointUploadMode | None = None,
    ) -> None:
        """Report a checkpoint to Ray Train: every rank reports, rank 0 with the files.

        Inside a task `state` is the method's at its start, and `unfinished` holds what was trained since. What of
        `state` is in no file of the run yet is written into its storage at once; after the run's first checkpoint
        that is nothing, but where a task has ended. With the mode ASYNC the other files are written here and copied
        to the storage while training goes on; Ray Train keeps the order of reports, and a checkpoint counts when its
        copy is whole. By default only copies to a store are made so; Ray Train waits for the last one at the end.
        """
        checkpoint: ray.train.Checkpoint | None = None
        if self.rank == 0:
            shared = {METHOD: self.store.put(state.tensors)}
            folder = temporary_folder("checkpoint")
            write_checkpoint(folder, self._content(stream_state, state), unfinished or {}, shared)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        metrics = {"task": stream_state.index, "update": stream_state.update}
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_upload_mode=mode or self._mode,
            delete_local_checkpoint_after_upload=True,
            checkpoint_upload_fn=partial(_copied, self.plan.run_dir),
        )

    def _content(self, stream_state: StreamState, state: MethodState) -> dict[str, object]:
        return {
            **self.identity,
            "method_structure": state.structure,
            "config": self.plan.config.to_json(),
            "stream_name": self.plan.stream.name,
            "tasks": self.plan.stream.steps,
            "stream_state": stream_state.to_json(),
        }


def _copied(run_dir: Place, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Copy a checkpoint into the run's folder. It counts there when all of it is on disk, and not before."""
    with whole_folder(run_dir / name, durable=True, last=STATE_FILE) as folder:
        copy_files(Path(checkpoint.path), folder)
    storage, filesystem = ray_storage(run_dir.parent)
    return ray.train.Checkpoint(path=f"{storage}/{run_dir.name}/{name}", filesystem=filesystem)


def copy_files(source: Place, folder: Path) -> None:
    """Copy a checkpoint's files, with the permissions of new ones: the source may be a private temporary folder."""
    for file in source.iterdir():
        with fetched(file) as near:
            shutil.copyfile(near, folder / file.name)


def method_state(checkpoint: Checkpoint) -> MethodState:
    """The method that a checkpoint holds."""
    structure = checkpoint.state.get("method_structure")
    if not isinstance(structure, dict) or METHOD not in checkpoint.tensors:
        raise CheckpointError(f"{checkpoint.folder} has no method state; it is damaged, {ADVICE}.")
    return MethodState(tensors=checkpoint.tensors[METHOD], structure=structure)
