"""Light on purpose (no torch, no ray): names of the files of runs and sweeps, for what only looks at folders."""

from __future__ import annotations

CONFIG_FILE = "config.json"  # which run the folder belongs to
VERDICTS_FILE = "forgetting.json"  # what its budget for forgetting says of each row; absent without one
FINISHED_FILE = "finished.json"  # when its stream ended; absent until then
ORIGIN_FILE = "origin.json"  # which run it continued from; absent in runs that began as usual
GATE_FILE = "gate.json"  # whether it went into production; absent in runs that were not to
LINK_FILE = "mlflow.json"  # where it is recorded
KEPT_CHECKPOINTS = "checkpoints"  # of learned tasks, for users
REJECTED = "rejected"  # checkpoints of tasks that were rolled back
TENSORS = "tensors"  # what its checkpoints refer to, each file named by its SHA-256 digest
SNAPSHOTS = "checkpoint_*"  # folders of Ray Train's, to continue from; their names sort by time
SNAPSHOT_LIST = "checkpoint_manager_snapshot.json"  # Ray Train's own list of them
LOCK_FILE = ".lock"  # names who holds the folder; in a store, a folder of tickets
STATE_FILE = "state.json"  # of a checkpoint: all that is no tensor
ACTIVITY_FILE = "activity.json"  # what its process does now; left behind by one that was killed
SWEEP_FILE = "sweep.json"  # which sweep the folder belongs to, and its trials once it has ended
SHARED_FOLDER = "shared"  # of a sweep: learned tasks that its trials share
