"""What methods share that add parameters with every task: rebuilding from a state, resuming inside a task, freezing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from components.core.errors import CheckpointError
from components.methods.base import ConfigT, Engine, Json, Method, MethodState, TaskInfo, copy_tensors, load_parameters

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone


class GrowingMethod(Method[ConfigT]):
    """Base of methods that add parameters with every task and freeze them when the task ends.

    A subclass says in `grow` what a task adds and in `set_trainable` what of it trains; its `attach` puts its modules
    into the model and then calls this class's. `memory` holds what goes with the parameters (prototypes, Gram
    matrices); it is kept on the CPU and is part of the state, under names that start with `MEMORY`.
    """

    MEMORY: ClassVar[str] = "memory."

    def __init__(self, config: ConfigT, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.begun = 0  # tasks that `grow` has run for, learned or not
        self.current: TaskInfo | None = None  # between begin_task and end_task
        self.memory: dict[str, Tensor] = {}

    def grow(self, model: Backbone, index: int) -> None:
        """Add the parameters of task `index`. What it draws depends on the seed and the index only, since `attach`
        runs it again before it loads their values.
        """
        raise NotImplementedError

    def set_trainable(self, index: int) -> None:
        """Let the parameters of task `index` train; all are frozen when this is called."""
        raise NotImplementedError

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        """For the end of a subclass's `attach`: grow as often as `state` says, load its values, freeze everything."""
        if state is not None:
            self.restore(state)
            begun = state.structure.get("begun")
            if isinstance(begun, list):  # older states of methods with a branch per task list the tasks' names
                begun = len(begun)
            if not isinstance(begun, int) or begun not in (len(self.tasks), len(self.tasks) + 1):
                raise CheckpointError("the checkpoint's state does not say how many tasks were begun; start a new run.")
            for index in range(begun):
                self.grow(model, index)
            self.begun = begun
            tensors = dict(state.tensors)
            for name in [name for name in tensors if name.startswith(self.MEMORY)]:
                self.memory[name.removeprefix(self.MEMORY)] = tensors.pop(name).clone()
            load_parameters(self.parameters(), tensors)
        model.requires_grad_(False)

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        if self.begun == task.index:  # otherwise an interrupted task goes on with what `attach` restored
            self.grow(model, task.index)
            self.begun += 1
        self.freeze()
        self.set_trainable(task.index)
        self.current = task

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        self.freeze()
        self.current = None

    def state_dict(self, model: Backbone) -> MethodState:
        memory = {f"{self.MEMORY}{name}": tensor for name, tensor in self.memory.items()}
        return MethodState(tensors=copy_tensors({**self.parameters(), **memory}), structure=self.structure())

    def structure(self) -> dict[str, Json]:
        return {**super().structure(), "begun": self.begun}
