"""Taking a task out of what a checkpoint holds; the method decides whether that is possible."""

from __future__ import annotations

from components.core.checkpoint import Checkpoint
from components.methods.base import Forgotten, MethodConfig
from components.training.checkpointing import method_state


def forget(checkpoint: Checkpoint, method: MethodConfig, task: str, *, seed: int) -> Forgotten:
    """The method's state without `task`; loads no model. Raises `ConfigError` where the method cannot part with it."""
    return method.build(seed=seed).forget_task(method_state(checkpoint), task)
